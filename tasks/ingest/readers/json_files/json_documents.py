"""A JSON document with lists of rows or columns (RFC 8259). As a whole, it must fit into memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.option_names import option_names
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error
from bloomery.tasks.ingest.readers.json_files.json_types import (
    ColumnTypes,
    Misfit,
    build_batch,
    json_type_name,
    parse_integer,
)
from bloomery.tasks.ingest.readers.text_files.text_streams import transcode_to_utf8

_BATCH_ROWS = 8_192
_MAX_PATHS, _MAX_DEPTH = 5, 6  # of lists that an error names


class _Fault(str):
    """A value that no column can hold, as the reason for it."""


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of the list at `records`, or of the document itself: objects, or arrays for `columns`.

    An object of columns is read, too: lists of one length, or objects with the same keys, as pandas writes them.

    Malformed items are set aside like malformed JSON lines, but without a line number.

    Raises:
        DataMissing: a file is no JSON, or has no such list.
    """
    types = ColumnTypes(data)
    read_schema = partial(add_types, records=origin.records, types=types)
    read_batches = partial(_read_batches, records=origin.records, types=types)
    return files.read_files(data, origin, malformed, read_schema, read_batches, is_cumulative=True)


def identify(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the digests of the files, and the path of the list."""
    return [locations.identify_files(data, origin), origin.records]


def add_types(location: FileLocation, data: DataSource, records: str | None, types: ColumnTypes) -> pa.Schema:
    """Adds the rows of a document to `types`, and returns their columns."""
    for item in _read_items(location, data, records):
        row = _to_row(item, data.columns)
        if isinstance(row, dict):
            types.add(row)
    return types.schema()


def _read_batches(
    location: FileLocation,
    data: DataSource,
    schema: pa.Schema,
    malformed: MalformedWriter,
    records: str | None,
    types: ColumnTypes,
) -> Iterator[pa.RecordBatch]:
    rows: list[Mapping[str, Any]] = []
    for number, item in enumerate(_read_items(location, data, records), 1):
        row = _to_row(item, data.columns)
        try:
            if isinstance(row, str):
                raise Misfit(row)
            rows.append(types.convert(row, schema))
        except Misfit as misfit:
            malformed.add(location.relative, None, _to_text(item), f"{_item_name(number, records)}: {misfit}")
        if len(rows) == _BATCH_ROWS:
            yield build_batch(rows, schema)
            rows = []
    yield build_batch(rows, schema)


def _read_items(location: FileLocation, data: DataSource, records: str | None) -> list[Any]:
    """Returns the list of rows at `records` in the document."""
    encoding = data.encoding or "utf-8"
    with location.open_stream() as raw:
        content = transcode_to_utf8(raw, encoding).read()
    try:
        node = _DECODER.decode(content.decode())
    except (ValueError, RecursionError) as failure:
        problem = "it is nested too deeply" if isinstance(failure, RecursionError) else failure
        options = ("encoding", "format") if isinstance(failure, UnicodeDecodeError) else ("format",)
        required = f"a complete JSON document in {encoding}"
        raise unreadable_error(location.path, problem, required, "JSON", options=options) from failure
    document = node
    for name in records.split(".") if records is not None else ():
        if not isinstance(node, dict) or name not in node:
            keys = f"it has {', '.join(node)}" if isinstance(node, dict) else f"it is {_describe(node)}"
            raise _records_error(location, f"there is no {name!r} of {records!r}; {keys}", document)
        node = node[name]
    if isinstance(node, dict):
        node = rows_of_columns(node) or node
    if not isinstance(node, list):
        raise _records_error(location, f"{records or 'the document'} is {_describe(node)}", document)
    return node


def _records_error(location: FileLocation, problem: str, document: Any) -> DataMissing:
    paths = list(islice(_iterate_paths(document), _MAX_PATHS))
    remedy = f", to {' or '.join(paths)}" if paths else ""
    return DataMissing(
        f"{location.path} cannot be read: {problem}",
        required="the path of a list of rows in the document",
        where=location.path,
        remedy=f"set {option_names('records')}{remedy}; or write the rows as a list, or an object per line",
    )


def _iterate_paths(node: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields the paths of lists of objects or lists in a document."""
    if isinstance(node, dict) and len(path) < _MAX_DEPTH:
        for name, inner in node.items():
            yield from _iterate_paths(inner, (*path, name))
    elif path and isinstance(node, list) and any(isinstance(item, (dict, list)) for item in node):
        yield ".".join(path)


def rows_of_columns(node: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Returns the rows of an object of at least two columns, or of rows by their numbers; None if it is neither."""
    columns = list(node.values())
    if _are_numbered_rows(node):
        return columns
    if len(columns) < 2 or not columns[0] or any(isinstance(cell, dict) for cell in _cells(columns[0])):
        return None
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(node, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        return [{name: column[key] for name, column in node.items()} for key in columns[0]]
    return None


def _are_numbered_rows(node: dict[str, Any]) -> bool:
    """Whether the keys are numbers of rows, and those of each row are none."""
    rows = node.values()
    are_rows = all(isinstance(row, dict) and not all(key.isdigit() for key in row) for row in rows)
    return bool(node) and all(key.isdigit() for key in node) and are_rows


def _cells(column: Any) -> Iterable[Any]:
    return column.values() if isinstance(column, dict) else column if isinstance(column, list) else ()


def _describe(value: object) -> str:
    return str(value) if isinstance(value, _Fault) else json_type_name(value)


def _to_row(item: Any, columns: tuple[str, ...] | None) -> dict[str, Any] | str:
    """Returns the values of an item by column, or why there are none."""
    try:
        fault = _find_fault(item)
        json.dumps(item, ensure_ascii=False).encode()
    except RecursionError:
        return "JSON that is nested too deeply"
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is no text"
    if fault is not None:
        return str(fault)
    if columns is None:
        return item if isinstance(item, dict) else f"not a JSON object, but {json_type_name(item)}"
    if not isinstance(item, list):
        return f"not a JSON array, but {json_type_name(item)}"
    if len(item) != len(columns):
        return f"{len(item)} value(s), where {len(columns)} are required"
    return dict(zip(columns, item, strict=True))


def _find_fault(value: Any) -> _Fault | None:
    if isinstance(value, _Fault):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((fault for fault in map(_find_fault, inner) if fault is not None), None)


def _item_name(number: int, records: str | None) -> str:
    return f"item {number} of {records}" if records else f"item {number}"


def _to_text(item: Any) -> str:
    try:
        return json.dumps(item, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    except RecursionError:
        return ""


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Fault:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    names = [name for name, _ in pairs]
    return _Fault(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")


_DECODER = json.JSONDecoder(object_pairs_hook=_parse_object, parse_int=parse_integer)
