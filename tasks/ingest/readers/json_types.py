"""The kinds of values that JSON has, widened over all rows, and the Arrow type of each."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.base import unreadable_error

# A word for plain values, a list of one kind, the fields of an object, or None while only nulls are known.
JsonType = Any
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "text"}
_ARROW = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "text": pa.string(), None: pa.null()}


def json_type_name(value: object) -> str:
    """What a value is that is no object: `text`, `array`, `null` and so on."""
    return _PLAIN.get(type(value), "null" if value is None else "array" if isinstance(value, list) else "object")


def widen_types(fields: dict[str, JsonType], row: dict[str, Any], where: str, place: FileLocation) -> None:
    """Afterwards `fields` has a kind for each column that holds the values so far and those of `row` too.

    Raises:
        DataMissing: there is none; the message says `where` the row is.
    """
    for name, value in row.items():
        try:
            fields[name] = _widened(fields.get(name), value)
        except TypeError as conflict:
            told = f"{where}, column {name}: {conflict}"
            raise unreadable_error(place.path, told, "values of one kind in each column") from conflict


def build_schema(fields: dict[str, JsonType], place: FileLocation) -> pa.Schema:
    """A column for each field, in their order."""
    return pa.schema([(name, _arrow_type(kind, name, place)) for name, kind in fields.items()])


def _widened(kind: JsonType, value: Any) -> JsonType:
    """The kind of values that were of `kind` and of this one too.

    Raises:
        TypeError: there is none.
    """
    if value is None:
        return kind
    if isinstance(value, dict):
        fields = {} if kind is None else kind
        if isinstance(fields, dict):
            for name, inner in value.items():
                fields[name] = _widened(fields.get(name), inner)
            return fields
    elif isinstance(value, list):
        element = [None] if kind is None else kind
        if isinstance(element, list):
            for inner in value:
                element[0] = _widened(element[0], inner)
            return element
    else:
        found = _PLAIN[type(value)]
        if kind is None or kind == found:
            return found
        if {"integer", "number"} == {found, kind if isinstance(kind, str) else ""}:
            return "number"
    raise TypeError(f"found {_described(value)}, and {_described_kind(kind)} before")


def _described(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False)[:40]}"


def _described_kind(kind: JsonType) -> str:
    return kind if isinstance(kind, str) else "an object" if isinstance(kind, dict) else "an array"


def _arrow_type(kind: JsonType, name: str, place: FileLocation) -> pa.DataType:
    if isinstance(kind, dict):
        if not kind:
            raise unreadable_error(
                place.path, f"column {name} has objects without a key", "objects with keys, or no column"
            )
        return pa.struct([(inner, _arrow_type(field, f"{name}.{inner}", place)) for inner, field in kind.items()])
    if isinstance(kind, list):
        return pa.list_(_arrow_type(kind[0], name, place))
    return _ARROW[kind]
