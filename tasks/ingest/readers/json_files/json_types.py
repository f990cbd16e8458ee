"""The types of JSON values, widened over all rows, and the Arrow type of each."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.base import unreadable_error

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
# A name for single values, a list with the type of its elements, the fields of an object, or None while all are null.
JsonType: TypeAlias = "str | list[JsonType] | dict[str, JsonType] | None"
_NAMES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "text"}
_ARROW_TYPES = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "text": pa.string()}


def json_type_name(value: object) -> str:
    """Returns the name of a value's type: `text`, `array`, `null` and so on."""
    return _NAMES.get(type(value), "null" if value is None else "array" if isinstance(value, list) else "object")


def widen_types(
    fields: dict[str, JsonType],
    row: Mapping[str, JsonValue],
    where: str,
    location: FileLocation,
    dropped: Collection[str] = (),
) -> None:
    """Widens the type of each column in `fields` so that it holds the values of `row` too.

    The columns `dropped` may have values of any type, since they are read as null.

    Raises:
        DataMissing: there is no such type; the message says `where` the row is.
    """
    for name, value in row.items():
        try:
            fields[name] = _widen(fields.get(name), None if name in dropped else value)
        except TypeError as conflict:
            problem = f"{where}, column {name}: {conflict}"
            required = "values of one type in each column that is not left out"
            raise unreadable_error(location.path, problem, required, options=("drop", "format")) from conflict


def build_schema(fields: Mapping[str, JsonType], location: FileLocation) -> pa.Schema:
    """Returns a column for each field, in their order."""
    return pa.schema([(name, _arrow_type(json_type, name, location)) for name, json_type in fields.items()])


def build_batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, dropped: Collection[str] = ()) -> pa.RecordBatch:
    """Returns the rows in the types of `schema`, with null in the columns `dropped`."""
    cells = ([None if field.name in dropped else row.get(field.name) for row in rows] for field in schema)
    arrays = [pa.array(column, field.type) for column, field in zip(cells, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _widen(json_type: JsonType, value: JsonValue) -> JsonType:
    """Returns the type that holds the values of `json_type` and this value.

    Raises:
        TypeError: there is none.
    """
    if value is None:
        return json_type
    if isinstance(value, dict):
        fields: JsonType = {} if json_type is None else json_type
        if isinstance(fields, dict):
            for name, inner in value.items():
                fields[name] = _widen(fields.get(name), inner)
            return fields
    elif isinstance(value, list):
        element: JsonType = [None] if json_type is None else json_type
        if isinstance(element, list):
            for inner in value:
                element[0] = _widen(element[0], inner)
            return element
    else:
        name = _NAMES[type(value)]
        if json_type is None or json_type == name:
            return name
        if isinstance(json_type, str) and {"integer", "number"} == {name, json_type}:
            return "number"
    raise TypeError(f"found {_describe_value(value)}, but earlier values are of type {_describe_type(json_type)}")


def _describe_value(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)[:40]


def _describe_type(json_type: JsonType) -> str:
    return json_type if isinstance(json_type, str) else "object" if isinstance(json_type, dict) else "array"


def _arrow_type(json_type: JsonType, name: str, location: FileLocation) -> pa.DataType:
    if isinstance(json_type, dict):
        if not json_type:
            problem = f"column {name} has objects without a key"
            raise unreadable_error(location.path, problem, "objects with keys, or no column", options=("drop",))
        fields = [(key, _arrow_type(inner, f"{name}.{key}", location)) for key, inner in json_type.items()]
        return pa.struct(fields)
    if isinstance(json_type, list):
        return pa.list_(_arrow_type(json_type[0], name, location))
    return pa.null() if json_type is None else _ARROW_TYPES[json_type]
