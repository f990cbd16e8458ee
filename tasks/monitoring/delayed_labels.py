"""Labels that arrive after the predictions, joined to their requests by id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.validation.row_checks import cast_batch, find_violations, row_rules
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings

ROW_ID = ["request", "row"]
_REQUIRED = "Parquet or CSV with the columns request and label, and row where requests have several rows"
_READERS = {".parquet": pq.read_table, ".csv": pcsv.read_csv}


def locate_labels(name: str, configured_path: str | None) -> Path | None:
    """Returns the path of a model's labels: the recipe's, else a folder in the state folder; None if it is empty."""
    if configured_path is not None:
        return Path(configured_path)
    folder = settings().home / "labels" / name
    return folder if _list_files(folder) else None


def read_labels(path: Path, *, is_multilabel: bool = False) -> pa.Table:
    """Reads `request`, `row` and `label` from a file, or from all files in a folder; the last label of each row counts.

    Sets of labels are texts of sorted JSON; a file has them as lists, or as JSON such as `["a", "b"]`.

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
    tables = [_read_file(file) for file in files]
    if is_multilabel:
        tables = [table.set_column(2, "label", as_plain_labels(table["label"], is_json=True)) for table in tables]
    if len({table["label"].type for table in tables}) > 1:  # one file has 3 and another "3"
        tables = [table.set_column(2, "label", table["label"].cast(pa.string())) for table in tables]
    return keep_last(pa.concat_tables(tables))


def as_plain_labels(labels: pa.Array | pa.ChunkedArray, *, is_json: bool = False) -> pa.Array | pa.ChunkedArray:
    """Returns sets of labels as texts that are equal where the sets are; other labels unchanged.

    With `is_json`, a text that is a JSON array is a set too. Arrow joins no tables with lists.
    """
    if not (pa.types.is_list(labels.type) or is_json):
        return labels
    return pa.array([_sort_set(value) for value in labels.to_pylist()], pa.string())


def parse_set(text: str) -> list[str]:
    """Returns the labels of a text from `as_plain_labels`; a text that is no JSON array is one label."""
    try:
        labels = json.loads(text)
    except ValueError:
        return [text]
    return [str(label) for label in labels] if isinstance(labels, list) else [text]


def _sort_set(value: Any) -> str | None:
    if value is None:
        return None
    labels = parse_set(value) if isinstance(value, str) else [str(label) for label in value if label is not None]
    return json.dumps(sorted(set(labels)), ensure_ascii=False)


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
    return sorted(path for path in folder.glob("*") if path.suffix in _READERS)


def _read_file(path: Path) -> pa.Table:
    try:
        table = _READERS.get(path.suffix, pq.read_table)(path)
    except (OSError, pa.ArrowException) as failure:
        raise DataMissing(
            f"{path} cannot be read: {failure}", required=_REQUIRED, where=str(path), remedy="check the path"
        ) from failure
    missing = {"request", "label"} - set(table.column_names)
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
            {"request": table["request"].cast(pa.string()), "row": row.cast(pa.int32()), "label": table["label"]}
        ).filter(table["label"].is_valid())
    except pa.ArrowException as failure:
        raise DataMissing(
            f"{path}: request or row has a wrong type: {failure}",
            required="request as text, row as a whole number",
            where=str(path),
            remedy="correct the columns",
        ) from failure
