"""A JSON document with lists of rows or columns (RFC 8259, in UTF-8). As a whole, it must fit into memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error
from bloomery.tasks.ingest.readers.json_files.json_types import (
    JsonType,
    build_batch,
    build_schema,
    json_type_name,
    widen_types,
)

_BATCH_ROWS = 8_192


class _Fault(str):
    """A value that no column can hold, as the reason for it."""


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of the list at `records`, or of the document itself: objects, or arrays for `columns`.

    An object of columns is read, too: lists of one length, or objects with the same keys, as pandas writes them.

    Malformed items are set aside like malformed JSON lines, but without a line number.

    Raises:
        DataMissing: a file is no JSON, has no such list, or a column has values of two types.
    """
    read_schema = partial(_read_schema, records=origin.records)
    read_batches = partial(_read_batches, records=origin.records)
    return files.read_files(data, origin, malformed, read_schema, read_batches, may_lack_columns=True)


def identify(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the digests of the files, and the path of the list."""
    return [locations.identify_files(data, origin), origin.records]


def _read_schema(location: FileLocation, data: DataSource, records: str | None) -> pa.Schema:
    fields: dict[str, JsonType] = dict.fromkeys(data.columns or ())
    for number, item in enumerate(_read_items(location, records), 1):
        row = _to_row(item, data.columns)
        if isinstance(row, dict):
            widen_types(fields, row, _item_name(number, records), location, data.drop or ())
    return build_schema(fields, location)


def _read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter, records: str | None
) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(_read_items(location, records), 1):
        row = _to_row(item, data.columns)
        if isinstance(row, dict):
            rows.append(row)
        else:
            malformed.add(location.relative, None, _to_text(item), f"{_item_name(number, records)}: {row}")
        if len(rows) == _BATCH_ROWS:
            yield build_batch(rows, schema, data.drop or ())
            rows = []
    yield build_batch(rows, schema, data.drop or ())


def _read_items(location: FileLocation, records: str | None) -> list[Any]:
    """Returns the list of rows at `records` in the document."""
    with location.open_stream() as stream:
        content = stream.read().removeprefix(codecs.BOM_UTF8)
    try:
        node = _DECODER.decode(content.decode())
    except (ValueError, RecursionError) as failure:
        problem = "it is nested too deeply" if isinstance(failure, RecursionError) else failure
        raise unreadable_error(location.path, problem, "a complete JSON document in UTF-8", "JSON") from failure
    for name in records.split(".") if records is not None else ():
        if not isinstance(node, dict) or name not in node:
            keys = f"it has {', '.join(node)}" if isinstance(node, dict) else f"it is {_describe(node)}"
            problem = f"there is no {name!r} of {records!r}; {keys}"
            raise unreadable_error(location.path, problem, "the path of a list of rows", options=("records",))
        node = node[name]
    if isinstance(node, dict):
        node = rows_of_columns(node) or node
    if not isinstance(node, list):
        problem = f"{records or 'the document'} is {_describe(node)}"
        raise unreadable_error(location.path, problem, "a list of rows in the document", options=("records",))
    return node


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


def _parse_integer(digits: str) -> int | _Fault:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        return _Fault("an integer that does not fit into 64 bits")
    return int(digits)


def _refuse_constant(word: str) -> _Fault:
    return _Fault(f"not JSON: {word} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_parse_object, parse_constant=_refuse_constant, parse_int=_parse_integer)
