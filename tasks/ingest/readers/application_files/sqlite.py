"""SQLite files, read with Python's own module. Every value is read as text, since a column there has no type.

A column declared as integer may hold texts, and one that is imported from CSV holds numbers as texts. Blobs stay bytes.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.expressions.sql import quote_name
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.option_names import option_names
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.application_files.text_cells import float_text, to_text_batch
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error
from bloomery.tasks.ingest.readers.text_files.number_texts import require_number_columns

_BATCH_ROWS = 8_192
_BOOLEANS = {0: "false", 1: "true"}
_WHOLE_TABLE = re.compile(r'select \* from ("(?:[^"]|"")+")')


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of one table or view, or those of `query`; a table's in the order in which they are stored.

    Raises:
        DataMissing: a file is no database or is locked by a password, has several tables or none with the requested
            name, or the query fails.
    """
    return files.read_files(data, origin, malformed, _read_schema, _read_batches)


def list_tables(location: FileLocation) -> list[str]:
    """Returns the names of the tables, and of the views that can be read."""
    with closing(_connect(location)) as connection:
        return _list_tables(connection, location)


def list_broken_views(location: FileLocation) -> dict[str, str]:
    """Returns the views that cannot be read, each with the reason: that of a dropped table, for example."""
    with closing(_connect(location)) as connection:
        return _find_broken_views(connection, location)


def list_columns(location: FileLocation, table: str) -> list[str]:
    """Returns the names of the columns of a table or view."""
    with closing(_connect(location)) as connection:
        return [name for name, _ in _describe(connection, f"select * from {quote_name(table)}", location)]


def _read_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    with closing(_connect(location)) as connection:
        statement = _statement(connection, location, data)
        names = [name for name, _ in _describe(connection, statement, location)]
        require_number_columns(names, data, location.path)
        blobs = _find_blobs(connection, statement, names, location)
    return pa.schema([(name, pa.binary() if name in blobs else pa.string()) for name in names])


def _read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    texts = pa.schema([field for field in schema if pa.types.is_string(field.type)])
    with closing(_connect(location)) as connection:
        statement = _statement(connection, location, data)
        columns = _describe(connection, statement, location)
        booleans = {name for name, declared in columns if declared in ("BOOL", "BOOLEAN")}
        cursor = _execute(connection, statement, location)
        while rows := _fetch(cursor, location):
            by_name = dict(zip([name for name, _ in columns], zip(*rows, strict=True), strict=True))
            cells = [[_to_text(value, name in booleans) for value in by_name[name]] for name in texts.names]
            batch = to_text_batch([*zip(*cells, strict=True)], texts, data)
            arrays = [
                batch[field.name]
                if field.name in texts.names
                else pa.array(map(_to_bytes, by_name[field.name]), pa.binary())
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _connect(location: FileLocation) -> sqlite3.Connection:
    """Opens the file for reading only. Nothing is written beside it."""
    if location.archive is not None or not Path(location.path).is_file():
        raise unreadable_error(location.path, "it is not a file on this machine", "an unpacked, local file")
    log = Path(f"{location.path}-wal")
    if log.is_file() and log.stat().st_size:
        raise unreadable_error(
            location.path, f"its last changes are in {log.name}", "a file that no program is writing: end that program"
        )
    connection = sqlite3.connect(f"{Path(location.path).as_uri()}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda content: content.decode("utf-8", "backslashreplace")
    return connection


def _statement(connection: sqlite3.Connection, location: FileLocation, data: DataSource) -> str:
    if data.query is not None:
        return data.query.rstrip().rstrip(";")
    tables = _list_tables(connection, location)
    matches = [table for table in tables if data.table in (None, table)]
    broken_views = _find_broken_views(connection, location)
    if data.table in broken_views:
        raise _database_error(location, f"the view {data.table} fails: {broken_views[data.table]}")
    if len(matches) != 1:
        listed = ", ".join(map(repr, tables)) or "none"
        raise DataMissing(
            f"{location.path} has no table {data.table!r}, but {listed}"
            if data.table is not None
            else f"{location.path} has the tables {listed}",
            required="one table, or the name of one",
            where=location.path,
            remedy=f"name one by {option_names('table')}, or join several by {option_names('query')}",
        )
    return f"select * from {quote_name(matches[0])}"


def _list_tables(connection: sqlite3.Connection, location: FileLocation) -> list[str]:
    query = "select name from sqlite_master where type in ('table', 'view') and name not like 'sqlite\\_%' escape '\\'"
    names = [str(name) for (name,) in _fetch(_execute(connection, f"{query} order by name", location), location)]
    broken_views = _find_broken_views(connection, location)
    return [name for name in names if name not in broken_views]


def _find_broken_views(connection: sqlite3.Connection, location: FileLocation) -> dict[str, str]:
    query = "select name from sqlite_master where type = 'view' order by name"
    broken_views = {}
    for (name,) in _fetch(_execute(connection, query, location), location):
        try:
            connection.execute(f"select * from {quote_name(str(name))} limit 0")
        except sqlite3.Error as failure:
            broken_views[str(name)] = str(failure)
    return broken_views


def _describe(connection: sqlite3.Connection, statement: str, location: FileLocation) -> list[tuple[str, str]]:
    """Returns the columns of a statement, each with its declared type where it is the column of a table."""
    cursor = _execute(connection, f"select * from ({statement}\n) limit 0", location)  # it may end with a comment
    names = [str(column[0]) for column in cursor.description]
    table = _WHOLE_TABLE.fullmatch(statement)
    declared = {}
    if table is not None:
        pragma = _execute(connection, f"pragma table_info({table[1]})", location)
        declared = {str(row[1]): str(row[2]).upper() for row in _fetch(pragma, location)}
    return [(name, declared.get(name, "")) for name in names]


def _find_blobs(
    connection: sqlite3.Connection, statement: str, names: Sequence[str], location: FileLocation
) -> set[str]:
    """Returns the columns in which a value is no text, number or null."""
    tests = ", ".join(f"max(typeof({quote_name(name)}) = 'blob')" for name in names)
    (flags,) = _fetch(_execute(connection, f"select {tests} from ({statement}\n)", location), location)
    return {name for name, is_blob in zip(names, flags, strict=True) if is_blob}


def _execute(connection: sqlite3.Connection, statement: str, location: FileLocation) -> sqlite3.Cursor:
    try:
        return connection.execute(statement)
    except sqlite3.Error as failure:
        raise _database_error(location, failure) from failure


def _fetch(cursor: sqlite3.Cursor, location: FileLocation) -> Sequence[tuple[Any, ...]]:
    try:
        return cursor.fetchmany(_BATCH_ROWS)
    except sqlite3.Error as failure:
        raise _database_error(location, failure) from failure


def _database_error(location: FileLocation, failure: sqlite3.Error | str) -> DataMissing:
    required = "a complete SQLite file without a password, and a query that it can run"
    return unreadable_error(location.path, failure, required, "sqlite", options=("table", "query"))


def _to_text(value: object, is_boolean: bool) -> str | None:
    if is_boolean and value in _BOOLEANS:
        return _BOOLEANS[int(str(value))]
    if isinstance(value, float):
        return float_text(value)
    return None if value is None else str(value)


def _to_bytes(value: object) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else str(value).encode()
