"""Labels that arrive after the predictions, joined to their requests by id."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from bloomery.data_contracts.errors import BloomeryError, DataMissing
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.output_units import ClassOutput, OutputUnits, standardise_outputs
from bloomery.data_contracts.validation.row_checks import cast_batch, find_violations, row_rules
from bloomery.models.features.labels import IGNORED_LABEL
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.list_texts import split_text
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.registry.bento_provenance import read_bento_provenance

ROW_ID = ["request", "row"]
_REQUIRED = "Parquet or CSV with the columns request and label, and row where requests have several rows"
_SUFFIXES = (".parquet", ".csv")


def locate_labels(name: str, configured_path: str | None) -> Path | None:
    """Returns the path of a model's labels: the recipe's, else a folder in the state folder; None if it is empty."""
    if configured_path is not None:
        return Path(configured_path)
    folder = settings().home / "labels" / name
    return folder if _list_files(folder) else None


def read_labels(
    path: Path, *, is_multilabel: bool = False, separator: str | None = None, column: str = "label"
) -> pa.Table:
    """Reads `request`, `row` and `label` from a file, or from all files in a folder; the last label of each row counts.

    In the files, `label` has the name `column`. Sets of labels are texts of sorted JSON; a file has them as lists, as
    JSON such as `["a", "b"]`, as single labels, or as texts with the `separator`. A blank text is a row without labels,
    and a null one has not arrived.

    Raises:
        DataMissing: there is no such file, or it has no labels.
    """
    files = _list_files(path) if path.is_dir() else [path]
    if not files:
        raise DataMissing(
            f"{path} has neither a .parquet nor a .csv file",
            required=_REQUIRED,
            where=str(path),
            remedy="put the labels there, or give another path",
        )
    tables = [_read_file(file, column, are_texts=is_multilabel) for file in files]
    if is_multilabel:
        sets = (pa.array([_sort_set(value, separator) for value in table["label"].to_pylist()]) for table in tables)
        tables = [
            table.set_column(2, "label", labels.cast(pa.string())) for table, labels in zip(tables, sets, strict=True)
        ]
    if len({table["label"].type for table in tables}) > 1:  # one file has 3 and another "3"
        tables = [table.set_column(2, "label", table["label"].cast(pa.string())) for table in tables]
    return keep_last(pa.concat_tables(tables))


def read_output_labels(path: Path, contract: Contract, names: Sequence[str]) -> tuple[pa.Table, int]:
    """Reads the labels of several outputs from the columns `names`, and counts those that the contract forbids.

    `label` is a JSON array with a null for a label that has not arrived, or is forbidden.

    Raises:
        DataMissing: there is no such file, or it lacks a column.
    """
    rows: dict[tuple[str, int], list[Any]] = {}
    num_invalid = 0
    for position, name in enumerate(names):
        labels, num_forbidden = filter_valid_labels(contract, name, read_labels(path, column=name))
        num_invalid += num_forbidden
        for row in labels.to_pylist():
            label = row["label"]
            if label is not None:
                values = rows.setdefault((row["request"], row["row"]), [None] * len(names))
                values[position] = str(label).lower() if isinstance(label, bool) else label
    texts = [json.dumps(values) for values in rows.values()]
    requests, numbers = [request for request, _ in rows], [number for _, number in rows]
    columns = [pa.array(requests, pa.string()), pa.array(numbers, pa.int32()), pa.array(texts, pa.string())]
    return pa.table(columns, names=[*ROW_ID, "label"]), num_invalid


def parse_classes(texts: Iterable[str], outputs: Sequence[ClassOutput]) -> np.ndarray:
    """JSON arrays of classes as positions int64 (N, M), negative for a null.

    A class that the version does not know has a position beyond all others: no prediction is right.
    """
    positions = [{str(name): number for number, name in enumerate(output.classes)} for output in outputs]

    def find(of_label: dict[str, int], value: object) -> int:
        return IGNORED_LABEL if value is None else of_label.get(_as_class_text(value), len(of_label))

    rows = [
        [find(of_label, value) for of_label, value in zip(positions, json.loads(text), strict=True)] for text in texts
    ]
    return np.array(rows, np.int64).reshape(-1, len(outputs))


def _as_class_text(value: object) -> str:
    """A class as text; whole numbers as integers, also where all became floats since some rows have no label."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parse_outputs(texts: Iterable[str], outputs: Sequence[OutputUnits]) -> np.ndarray:
    """JSON arrays of values as standard units float64 (N, K); nan for a null."""
    rows = [[np.nan if value is None else value for value in json.loads(text)] for text in texts]
    return standardise_outputs(outputs, np.array(rows, np.float64).reshape(-1, len(outputs)))


def as_plain_labels(labels: pa.Array | pa.ChunkedArray, *, is_ordered: bool = False) -> pa.Array | pa.ChunkedArray:
    """Returns sets of labels as texts that are equal where the sets are; other labels unchanged.

    The predictions of several outputs, which are ordered, are texts, too: Arrow joins no tables with lists.
    """
    if not pa.types.is_list(labels.type):
        return labels
    if is_ordered or pa.types.is_floating(labels.type.value_type):
        return pa.array([json.dumps(values) for values in labels.to_pylist()], pa.string())
    return pa.array([_sort_set(value) for value in labels.to_pylist()], pa.string())


def parse_set(text: str, separator: str | None = None) -> list[str]:
    """Returns the labels of a JSON array, as `as_plain_labels` writes it, or of a text with the `separator`.

    Without a separator, a text that is no array is one label.
    """
    with contextlib.suppress(ValueError, RecursionError):
        labels = json.loads(text)
        if isinstance(labels, list):
            return [str(label) for label in labels if label is not None]
    elements = split_text(text, separator)
    return [text] if elements is None else elements


def _sort_set(value: Any, separator: str | None = None) -> str | None:
    """Returns a set as a text of sorted JSON; a value that is neither a list nor a text is one label."""
    if value is None:
        return None
    is_list = isinstance(value, list | tuple)
    labels = [str(label) for label in value if label is not None] if is_list else parse_set(str(value), separator)
    return json.dumps(sorted(set(labels)), ensure_ascii=False)


def read_set_separator(tag: str, column: str) -> str | None:
    """Returns the separator in the texts of the label `column`, by the recipe in the bento; None if there is none."""
    try:
        data = read_bento_provenance(tag).recipe.get("data")
    except BloomeryError:
        return None
    lists = data.get("lists") if isinstance(data, dict) else None
    options = lists.get(column) if isinstance(lists, dict) else None
    return options.get("separator") if isinstance(options, dict) else None


def drop_unknown_labels(labels: pa.Table, names: Collection[str]) -> tuple[pa.Table, Counter[str]]:
    """Returns sets of labels without those that are not in `names`, and how many rows had each of these.

    A recipe's `values` of `data.lists` name the labels to learn; the others were left out before training, too.
    """
    unknown: Counter[str] = Counter()
    kept = []
    for text in labels["label"].to_pylist():
        label_set = parse_set(text)
        unknown.update(label for label in label_set if label not in names)
        kept.append(_sort_set([label for label in label_set if label in names]))
    position = labels.column_names.index("label")
    return labels.set_column(position, "label", pa.array(kept, pa.string())), unknown


def filter_valid_labels(contract: Contract, column: str, labels: pa.Table) -> tuple[pa.Table, int]:
    """Returns the labels that the contract allows in `column`, cast to its type, and the number of invalid labels.

    Rows with an invalid label were quarantined before training, too; a single one may outweigh a thousand others.
    Nothing is checked if the column is served as windows.
    """
    schema = arrow_schema(contract.columns)
    if column not in schema.names or pa.types.is_list(schema.field(column).type):
        return labels, 0
    raw = pa.RecordBatch.from_arrays([labels["label"].combine_chunks()], names=[column])
    batch = cast_batch(raw, pa.schema([schema.field(column)]), contract.date_formats)
    is_invalid = np.zeros(labels.num_rows, dtype=bool)
    for rule in row_rules(contract):
        is_about_values = rule.target == column and not rule.is_of_items and rule.kind != "expression"
        if is_about_values and rule.severity == "error":
            is_invalid |= find_violations(rule, batch, {}).to_numpy(zero_copy_only=False)
    cast_labels = labels.set_column(labels.column_names.index("label"), "label", batch.rows.column(column))
    return cast_labels.filter(pa.array(~is_invalid)), int(is_invalid.sum())


def read_bento_contract(tag: str) -> Contract:
    """Reads the contract in a bento."""
    return Contract.model_validate_json((artifacts_folder(tag) / "contract.json").read_text(encoding="utf-8"))


def keep_last(table: pa.Table) -> pa.Table:
    """Returns the last entry of each row id, because a client may reuse a request id."""
    numbered_rows = table.append_column("order", pa.array(np.arange(table.num_rows)))
    last = numbered_rows.group_by(ROW_ID).aggregate([("order", "max")])["order_max"]
    return table.take(last)


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in _SUFFIXES)


def _read_file(path: Path, column: str, *, are_texts: bool = False) -> pa.Table:
    """Reads a file; with `are_texts`, all labels of a CSV file are texts, also blank ones and numbers."""
    try:
        if path.suffix == ".csv":
            types = {column: pa.string()} if are_texts else None
            table = pcsv.read_csv(path, convert_options=pcsv.ConvertOptions(column_types=types))
        else:
            table = pq.read_table(path)
    except (OSError, pa.ArrowException) as failure:
        raise DataMissing(
            f"{path} cannot be read: {failure}", required=_REQUIRED, where=str(path), remedy="check the path"
        ) from failure
    missing = {"request", column} - set(table.column_names)
    if missing:
        raise DataMissing(
            f"{path} has no column {', '.join(sorted(missing))}",
            required=_REQUIRED,
            where=str(path),
            remedy="rename the columns",
        )
    row = table["row"] if "row" in table.column_names else pa.array(np.zeros(table.num_rows))
    try:
        return pa.table(
            {"request": table["request"].cast(pa.string()), "row": row.cast(pa.int32()), "label": table[column]}
        ).filter(table[column].is_valid())
    except pa.ArrowException as failure:
        raise DataMissing(
            f"{path}: request or row has a wrong type: {failure}",
            required="request as text, row as a whole number",
            where=str(path),
            remedy="correct the columns",
        ) from failure
