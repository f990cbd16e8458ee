"""Delta and Iceberg tables, at one version, through the packages `deltalake` and `pyiceberg`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import pyarrow as pa

from bloomery.data_contracts.errors import BloomeryError, DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.optional_packages import import_package
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, canonical_schema, conform_batch

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from pyiceberg.table import Table

_HTTP = "http://"


def read_delta(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of a Delta table at `version`, or its newest, file after file by name.

    Raises:
        EngineMissing: the package deltalake is not installed.
        DataMissing: there is no such table or version, or it has a feature that cannot be read (deletion vectors).
    """
    table, deltalake = _open_delta(data, origin)
    try:
        dataset = table.to_pyarrow_dataset()
    except deltalake.exceptions.DeltaError as failure:
        raise _table_error("Delta", origin, failure) from failure
    schema = canonical_schema(dataset.schema)

    def batches() -> Iterator[pa.RecordBatch]:
        for fragment in sorted(dataset.get_fragments(), key=lambda fragment: fragment.path):
            for batch in fragment.to_batches(schema=dataset.schema):
                yield conform_batch(batch, schema)

    return RowStream(schema, batches())


def identify_delta(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the table's own id and the version."""
    table, _ = _open_delta(data, origin)
    return [str(table.metadata().id), table.version()]


def _open_delta(data: DataSource, origin: SourceFile) -> tuple[DeltaTable, ModuleType]:
    deltalake = import_package("deltalake", "pip install 'bloomery[delta]'", origin.source)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    options = {"AWS_ALLOW_HTTP": "true"} if endpoint.startswith(_HTTP) else {}
    try:
        table = deltalake.DeltaTable(
            origin.source.removeprefix("delta:"), version=data.version, storage_options=options
        )
    except (deltalake.exceptions.DeltaError, OSError) as failure:
        raise _table_error("Delta", origin, failure) from failure
    return table, deltalake


def read_iceberg(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of an Iceberg table at the snapshot `version`, or its newest, file after file by name.

    Raises:
        EngineMissing: the package pyiceberg is not installed.
        DataMissing: there is no such catalog, table or snapshot.
    """
    table = _open_iceberg(data, origin)
    from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow

    scan = table.scan(snapshot_id=data.version)
    schema = canonical_schema(schema_to_pyarrow(scan.projection()))
    tasks = sorted(scan.plan_files(), key=lambda task: task.file.file_path)

    def batches() -> Iterator[pa.RecordBatch]:
        for task in tasks:  # one by one: a scan of all tasks would hold all rows in memory
            reader = ArrowScan(scan.table_metadata, scan.io, scan.projection(), scan.row_filter)
            for batch in reader.to_record_batches([task]):
                yield conform_batch(batch, schema)

    return RowStream(schema, batches())


def identify_iceberg(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the table's own id, and those of the snapshot and of its schema."""
    table = _open_iceberg(data, origin)
    snapshot = table.current_snapshot() if data.version is None else table.snapshot_by_id(data.version)
    if snapshot is None and data.version is not None:
        raise _table_error("Iceberg", origin, f"it has no snapshot {data.version}")
    snapshot_id = None if snapshot is None else snapshot.snapshot_id
    return [str(table.metadata.table_uuid), snapshot_id, table.schema().schema_id]


def _open_iceberg(data: DataSource, origin: SourceFile) -> Table:
    """Opens a table of a catalog from pyiceberg's own settings, or the table of one metadata file."""
    import_package("pyiceberg", "pip install 'bloomery[iceberg]'", origin.source)
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
    from pyiceberg.table import StaticTable

    name = origin.source.removeprefix("iceberg:")
    try:
        if name.endswith(".metadata.json"):
            return StaticTable.from_metadata(name)
        catalog, _, table = name.partition(".")
        return load_catalog(catalog).load_table(table)
    except (NoSuchNamespaceError, NoSuchTableError, ValueError, OSError) as failure:
        raise _table_error("Iceberg", origin, failure) from failure


def _table_error(kind: str, origin: SourceFile, failure: object) -> BloomeryError:
    return DataMissing(
        f"the {kind} table {origin.source} cannot be read: {failure}",
        required=f"a {kind} table at an existing version",
        where="the recipe's `data`",
        remedy="correct the path, the name or the `version`",
    )
