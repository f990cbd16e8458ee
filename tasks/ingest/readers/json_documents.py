"""A JSON document with lists of rows inside (RFC 8259, in UTF-8). It is read whole, so it must fit into memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error
from bloomery.tasks.ingest.readers.json_types import JsonType, build_schema, json_type_name, widen_types

_BATCH_ROWS = 8_192


class _Fault(str):
    """Why a value is none that a column can hold, where the value stood."""


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """The rows of the list at `records`, or of the document itself: objects, or arrays whose values `columns` names.

    What JSON lines put aside as a line is put aside here as an item of the list; it has no line number.

    Raises:
        DataMissing: a file is no JSON, has no such list, or a column has values of two kinds.
    """
    schema, batches = partial(_schema, records=origin.records), partial(_batches, records=origin.records)
    return files.read_files(data, origin, malformed, schema, batches, may_lack=True)


def identify(data: Data, origin: Origin) -> list[object]:
    """The digests of the files, and the list that is read."""
    return [locations.identify_files(data, origin), origin.records]


def _schema(place: FileLocation, data: Data, records: str | None) -> pa.Schema:
    fields: dict[str, JsonType] = dict.fromkeys(data.columns or ())
    for number, item in enumerate(_items(place, records), 1):
        row = _row(item, data.columns)
        if isinstance(row, dict):
            widen_types(fields, row, _named(number, records), place)
    return build_schema(fields, place)


def _batches(
    place: FileLocation, data: Data, schema: pa.Schema, malformed: MalformedWriter, records: str | None
) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(_items(place, records), 1):
        row = _row(item, data.columns)
        if isinstance(row, dict):
            rows.append(row)
        else:
            malformed.add(place.relative, None, _spelt(item), f"{_named(number, records)}: {row}")
        if len(rows) == _BATCH_ROWS:
            yield _batch(rows, schema)
            rows = []
    yield _batch(rows, schema)


def _batch(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _items(place: FileLocation, records: str | None) -> list[Any]:
    """The list of rows inside a document."""
    with place.stream() as stream:
        content = stream.read().removeprefix(codecs.BOM_UTF8)
    try:
        found = _DECODER.decode(content.decode())
    except (ValueError, RecursionError) as failure:
        told = "too deep" if isinstance(failure, RecursionError) else failure
        raise unreadable_error(place.path, told, "a whole JSON document in UTF-8", "JSON") from failure
    for name in records.split(".") if records is not None else ():
        if not isinstance(found, dict) or name not in found:
            keys = f"it has {', '.join(found)}" if isinstance(found, dict) else f"there is {_kind(found)}"
            raise unreadable_error(
                place.path, f"there is no {name!r} of {records!r}; {keys}", "the list that `records` names"
            )
        found = found[name]
    if not isinstance(found, list):
        told = f"{records or 'the document'} is {_kind(found)}"
        raise unreadable_error(place.path, told, "a list of rows; `records` says where in the document it is")
    return found


def _kind(value: object) -> str:
    return str(value) if isinstance(value, _Fault) else json_type_name(value)


def _row(item: Any, columns: tuple[str, ...] | None) -> dict[str, Any] | str:
    """The values of an item by column, or why there are none."""
    try:
        fault = _fault_in(item)
        json.dumps(item, ensure_ascii=False).encode()
    except RecursionError:
        return "not JSON that can be read: too deep"
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


def _fault_in(value: Any) -> _Fault | None:
    if isinstance(value, _Fault):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((fault for fault in map(_fault_in, inner) if fault is not None), None)


def _named(number: int, records: str | None) -> str:
    return f"item {number} of {records}" if records else f"item {number}"


def _spelt(item: Any) -> str:
    try:
        return json.dumps(item, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    except RecursionError:
        return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Fault:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    names = [name for name, _ in pairs]
    return _Fault(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")


def _integer(digits: str) -> int | _Fault:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        return _Fault("a whole number that does not fit into 64 bits")
    return int(digits)


def _no_constant(word: str) -> _Fault:
    return _Fault(f"not JSON: {word} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant, parse_int=_integer)
