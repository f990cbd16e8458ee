"""Labels that came later, beside the requests that they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.odcs.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.validation.row_checks import breaking, read_batch, row_rules
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings

PLACE = ["request", "row"]
_REQUIRED = "Parquet or CSV with the columns request and label, and row where requests have several"
_READERS = {".parquet": pq.read_table, ".csv": pcsv.read_csv}


def labels_of(name: str, stated: str | None) -> Path | None:
    """Where labels of a model's requests arrive: what a recipe has `stated`, else a folder of the state folder.

    None if nothing has arrived in that folder yet.
    """
    if stated is not None:
        return Path(stated)
    folder = settings().home / "labels" / name
    return folder if _files(folder) else None


def read_labels(place: Path) -> pa.Table:
    """`request`, `row` and `label` of a file, or of all files in a folder; the last one where there are several.

    Raises:
        DataMissing: there is no such file, or it is none of labels.
    """
    paths = _files(place) if place.is_dir() else [place]
    if not paths:
        raise DataMissing(
            f"{place} holds neither a .parquet nor a .csv file",
            required=_REQUIRED,
            where=str(place),
            remedy="put the labels there, or name another place",
        )
    tables = [_read(path) for path in paths]
    if len({table["label"].type for table in tables}) > 1:  # one file writes 3 and another "3"
        tables = [table.set_column(2, "label", table["label"].cast(pa.string())) for table in tables]
    return once(pa.concat_tables(tables))


def kept_by(contract: Contract, column: str, labels: pa.Table) -> tuple[pa.Table, int]:
    """The labels that checked rows could have in `column`, in its type, and how many others there are.

    Rows with such a label were set aside before training too, and one of them may outweigh a thousand others. Of a
    column that is served as windows nothing is asked.
    """
    schema = arrow_schema(contract)
    if column not in schema.names or pa.types.is_list(schema.field(column).type):
        return labels, 0
    found = pa.RecordBatch.from_arrays([labels["label"].combine_chunks()], names=[column])
    batch = read_batch(found, pa.schema([schema.field(column)]))
    is_broken = np.zeros(labels.num_rows, dtype=bool)
    for rule in row_rules(contract):
        if rule.target == column and rule.severity == "error" and rule.kind != "expression":
            is_broken |= breaking(rule, batch, {}).to_numpy(zero_copy_only=False)
    kept = labels.set_column(labels.column_names.index("label"), "label", batch.rows.column(column))
    return kept.filter(pa.array(~is_broken)), int(is_broken.sum())


def contract_of(tag: str) -> Contract:
    """The contract in a bento."""
    return Contract.model_validate_json((artifacts_folder(tag) / "contract.json").read_text(encoding="utf-8"))


def once(table: pa.Table) -> pa.Table:
    """The last of the rows that have one place, since a client may use an id again."""
    numbered = table.append_column("order", pa.array(np.arange(table.num_rows)))
    last = numbered.group_by(PLACE).aggregate([("order", "max")])["order_max"]
    return table.take(last)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in _READERS)


def _read(path: Path) -> pa.Table:
    try:
        table = _READERS.get(path.suffix, pq.read_table)(path)
    except (OSError, pa.ArrowException) as failure:
        raise DataMissing(
            f"{path} cannot be read: {failure}", required=_REQUIRED, where=str(path), remedy="check the name"
        ) from failure
    missing = {"request", "label"} - set(table.column_names)
    if missing:
        raise DataMissing(
            f"{path} has no column {', '.join(sorted(missing))}",
            required=_REQUIRED,
            where=str(path),
            remedy="name the columns so",
        )
    row = table["row"] if "row" in table.column_names else pa.array(np.zeros(table.num_rows))
    try:
        return pa.table(
            {"request": table["request"].cast(pa.string()), "row": row.cast(pa.int32()), "label": table["label"]}
        ).filter(table["label"].is_valid())
    except pa.ArrowException as failure:
        raise DataMissing(
            f"{path}: request or row is not what it must be: {failure}",
            required="request as text, row as a whole number",
            where=str(path),
            remedy="mend the columns",
        ) from failure
