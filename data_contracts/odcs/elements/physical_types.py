"""Physical types: names of Arrow types, which determine how values are stored, and types of the source's database.

The standard leaves `physicalType` free. An Arrow name that fits the logical type determines the stored type; any other
name describes the source, and is read only where it says more than the logical type.
"""

from __future__ import annotations

import re

from bloomery.data_contracts.odcs.base import LogicalType, StandardType

PHYSICAL_TYPES: dict[LogicalType, tuple[str, ...]] = {
    "integer": ("int64", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    "number": ("float64", "float32"),
    "string": ("string",),
    "boolean": ("bool",),
    "date": ("date32",),
    "timestamp": ("timestamp[us, UTC]",),
    "array": ("list",),
}
# The stored type of a `format` of `logicalTypeOptions`. Values of a wider type must fit into int64.
FORMATS = {
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "f32": "float32",
    "f64": "float64",
}
_NAMES: dict[StandardType, str] = {
    "integer": "int integer int2 int4 int8 int16 int32 int64 uint8 uint16 uint32 uint64 smallint bigint tinyint "
    "mediumint byteint serial smallserial bigserial serial2 serial4 serial8 long short",
    "number": "float double real decimal dec numeric number float4 float8 float16 float32 float64 bignumeric "
    "bigdecimal money smallmoney",
    "string": "string varchar varchar2 nvarchar nvarchar2 char nchar character bpchar text ntext tinytext mediumtext "
    "longtext clob nclob uuid citext uniqueidentifier enum",
    "boolean": "bool boolean bit",
    "date": "date date32",
    "timestamp": "timestamp timestamptz timestamp_ntz timestamp_ltz timestamp_tz datetime datetime2 smalldatetime "
    "datetimeoffset",
    "time": "time timetz",
    "object": "object json jsonb struct record variant map",
    "array": "array list",
}
_TYPE_OF: dict[str, StandardType] = {name: kind for kind, names in _NAMES.items() for name in names.split()}


def logical_type_of(physical_type: str | None) -> StandardType | None:
    """The logical type of a database's type, such as integer for `INT4` and string for `varchar(2)`, if it is known."""
    word = re.match(r"\s*(\w+)", (physical_type or "").lower())
    return None if word is None else _TYPE_OF.get(word[1])


def is_arrow_name(physical_type: str | None, logical_type: StandardType | None) -> bool:
    """Whether `physical_type` is an Arrow type for values of `logical_type`."""
    return any(physical_type in names for kind, names in PHYSICAL_TYPES.items() if kind == logical_type)


def refine_type(logical_type: StandardType | None, physical_type: str | None) -> StandardType | None:
    """The type of the values: the logical type, or the physical type's where it is missing or narrower.

    A `number` in a column of integers is an integer, and a `date` in a column of timestamps is a timestamp, which was
    no logical type before v3.1.
    """
    source_type = logical_type_of(physical_type)
    is_narrower = (logical_type, source_type) in (("number", "integer"), ("date", "timestamp"))
    return source_type if logical_type is None or is_narrower else logical_type
