"""SQL databases through ADBC (Arrow Database Connectivity)."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from bloomery.data_contracts.documents.digests import digest_of_table
from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.ingest.optional_packages import import_package
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, canonical_schema, conform_batch

_DRIVER = re.compile(r"adbc_driver_[a-z0-9_]+")


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of the query, in its order and in the types of the driver.

    Raises:
        EngineMissing: the driver is not installed.
        DataMissing: the variable with the URI is not set, or the query fails.
    """
    with _run_query(data, origin) as reader:
        schema = canonical_schema(reader.schema)
    return RowStream(schema, _read_batches(data, origin, schema))


def identify(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the digests of the query's present rows, since a database has no version."""
    with _run_query(data, origin) as reader:
        schema = canonical_schema(reader.schema)
    digests = []
    rows = pa.Table.from_batches([], schema)
    for batch in _read_batches(data, origin, schema):
        rows = pa.concat_tables([rows, pa.Table.from_batches([batch])])
        while rows.num_rows >= ROW_GROUP_SIZE:
            digests.append(digest_of_table(rows.slice(0, ROW_GROUP_SIZE)))
            rows = rows.slice(ROW_GROUP_SIZE)
    version = importlib.metadata.version(_driver_module(origin).replace("_", "-"))
    return [_driver_module(origin), version, *digests, digest_of_table(rows)]


def _read_batches(data: DataSource, origin: SourceFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with _run_query(data, origin) as reader:
        for batch in reader:
            yield conform_batch(batch, schema)


@contextmanager
def _run_query(data: DataSource, origin: SourceFile) -> Iterator[pa.RecordBatchReader]:
    driver = _driver_module(origin)
    module = import_package(f"{driver}.dbapi", f"pip install {driver.replace('_', '-')}", origin.source)
    variable = data.uri_variable or ""
    uri = os.environ.get(variable)
    if not uri:
        raise DataMissing(
            f"the environment variable {variable} is not set",
            required="the database's URI, which no recipe should contain, since it may have a password",
            where="the recipe's data.uri_variable",
            remedy=f"export {variable}=...",
        )
    try:
        with module.connect(uri) as connection, connection.cursor() as cursor:
            cursor.execute(data.query)
            yield cursor.fetch_record_batch()
    except module.Error as failure:
        # The message may contain the URI, and the URI a password.
        message = str(failure).replace(uri, f"${variable}")
        raise DataMissing(
            f"the query failed: {message}",
            required="a query that the database can run",
            where=f"{origin.source}, query {data.query!r}",
            remedy=f"correct the query, or the URI in {variable}",
        ) from None


def _driver_module(origin: SourceFile) -> str:
    driver = origin.source.removeprefix("sql:")
    if _DRIVER.fullmatch(driver) is None:
        raise DataMissing(
            f"{driver!r} is not the name of an ADBC driver",
            required="the module of a driver, such as sql:adbc_driver_sqlite or sql:adbc_driver_postgresql",
            where="the recipe's data.source",
            remedy="correct the name",
        )
    return driver
