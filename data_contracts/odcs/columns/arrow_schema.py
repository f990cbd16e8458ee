"""The columns of a contract as an Arrow schema and as a Spark schema, and the compatibility of types."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.columns.typed_elements import TypedElement

_ARROW: dict[str, pa.DataType] = {
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "date32": pa.date32(),
    "timestamp[us, UTC]": pa.timestamp("us", "UTC"),
}
# Spark has no unsigned integers, so each becomes the next larger signed one, as in Spark's own Parquet reader.
_SPARK: dict[str, str] = {
    "int8": "byte",
    "int16": "short",
    "int32": "integer",
    "int64": "long",
    "uint8": "short",
    "uint16": "integer",
    "uint32": "long",
    "float32": "float",
    "float64": "double",
    "string": "string",
    "bool": "boolean",
    "date32": "date",
    "timestamp[us, UTC]": "timestamp",
}


def value_range(kind: pa.DataType) -> tuple[int, int] | tuple[float, float]:
    """The smallest and the largest finite number that an Arrow type holds."""
    if pa.types.is_floating(kind):
        largest = 3.4028234663852886e38 if kind.bit_width == 32 else sys.float_info.max
        return -largest, largest
    if pa.types.is_signed_integer(kind):
        return -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1
    return 0, 2**kind.bit_width - 1


def max_exact_integer(kind: pa.DataType) -> int:
    """The integer up to which a floating-point type holds every integer exactly."""
    return 2**24 if kind.bit_width == 32 else 2**53


def arrow_type(item: TypedElement) -> pa.DataType:
    """The Arrow type of a column's values or of an array's elements."""
    items = getattr(item, "items", None)
    return pa.list_(arrow_type(items)) if items is not None else _ARROW[item.arrow_type]


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of valid rows, in the order of `columns`."""
    return pa.schema([pa.field(column.name, arrow_type(column)) for column in columns])


def spark_schema(columns: Sequence[Column]) -> dict[str, Any]:
    """The same schema as a document for `pyspark.sql.types.StructType.fromJson`."""

    def spark_type(item: TypedElement) -> Any:
        items = getattr(item, "items", None)
        if items is None:
            return _SPARK[item.arrow_type]
        return {"type": "array", "elementType": spark_type(items), "containsNull": True}

    return {
        "type": "struct",
        "fields": [
            {"name": column.name, "type": spark_type(column), "nullable": True, "metadata": {}} for column in columns
        ],
    }


def is_compatible(actual: pa.DataType, required: pa.DataType) -> bool:
    """Whether both types are of one family, so that each value of type `actual` may be cast to `required`.

    A column without a single value has the null type, which is compatible with every type.
    """
    if pa.types.is_null(actual):
        return True
    if pa.types.is_list(required):
        is_array = pa.types.is_list(actual) or pa.types.is_large_list(actual) or pa.types.is_fixed_size_list(actual)
        return is_array and is_compatible(actual.value_type, required.value_type)
    return _family(actual) == _family(required)


def _family(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    return "date" if pa.types.is_date(kind) else str(kind)
