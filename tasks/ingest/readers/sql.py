"""SQL databases through ADBC (Arrow Database Connectivity)."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.documents.digests import digest_of_table
from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.ingest.optional_packages import import_package
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, canonical_schema, conform_batch

_DRIVER = re.compile(r"adbc_driver_[a-z0-9_]+")


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """The rows that the query gives, in its order and in the types of the driver.

    Raises:
        EngineMissing: the driver is not installed.
        DataMissing: the variable with the URI is not set, or the database refuses the query.
    """
    with _answer(data, origin) as reader:
        schema = canonical_schema(reader.schema)
    return RowStream(schema, _batches(data, origin, schema))


def identify(data: Data, origin: Origin) -> list[object]:
    """The digests of the rows that the query gives now, since a database tells no version."""
    with _answer(data, origin) as reader:
        schema = canonical_schema(reader.schema)
    digests = []
    waiting = pa.Table.from_batches([], schema)
    for batch in _batches(data, origin, schema):
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while waiting.num_rows >= ROW_GROUP_SIZE:
            digests.append(digest_of_table(waiting.slice(0, ROW_GROUP_SIZE)))
            waiting = waiting.slice(ROW_GROUP_SIZE)
    version = importlib.metadata.version(_driver(origin).replace("_", "-"))
    return [_driver(origin), version, *digests, digest_of_table(waiting)]


def _batches(data: Data, origin: Origin, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with _answer(data, origin) as reader:
        for batch in reader:
            yield conform_batch(batch, schema)


@contextmanager
def _answer(data: Data, origin: Origin) -> Iterator[pa.RecordBatchReader]:
    driver = _driver(origin)
    module: Any = import_package(f"{driver}.dbapi", f"pip install {driver.replace('_', '-')}", origin.source)
    variable = data.uri_variable or ""
    uri = os.environ.get(variable)
    if not uri:
        raise DataMissing(
            f"the environment variable {variable} is not set",
            required="the database's URI in it, so that no password stands in a recipe",
            where="the recipe's data.uri_variable",
            remedy=f"export {variable}=...",
        )
    try:
        with module.connect(uri) as connection, connection.cursor() as cursor:
            cursor.execute(data.query)
            yield cursor.fetch_record_batch()
    except module.Error as failure:
        # The message may have the URI in it, and the URI a password.
        told = str(failure).replace(uri, f"${variable}")
        raise DataMissing(
            f"the database does not answer: {told}",
            required="a query that it can run",
            where=f"{origin.source}, query {data.query!r}",
            remedy=f"mend the query, or the URI in {variable}",
        ) from None


def _driver(origin: Origin) -> str:
    driver = origin.source.removeprefix("sql:")
    if _DRIVER.fullmatch(driver) is None:
        raise DataMissing(
            f"{driver!r} names no ADBC driver",
            required="the module of a driver, such as sql:adbc_driver_sqlite or sql:adbc_driver_postgresql",
            where="the recipe's data.source",
            remedy="mend the name",
        )
    return driver
