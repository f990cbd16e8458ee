"""A contract as an Arrow schema and as a Spark schema."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bloomery.data_contracts.errors import ContractBroken
from bloomery.data_contracts.odcs.columns import Column, TypedElement

if TYPE_CHECKING:
    from bloomery.data_contracts.odcs.contract import Contract

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
# Spark has no unsigned integers: each goes to the next larger signed one, as Spark's own Parquet reader does.
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
    """The least and the largest finite number that an Arrow type holds."""
    if pa.types.is_floating(kind):
        largest = 3.4028234663852886e38 if kind.bit_width == 32 else sys.float_info.max
        return -largest, largest
    if pa.types.is_signed_integer(kind):
        return -(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1
    return 0, 2**kind.bit_width - 1


def max_exact_integer(kind: pa.DataType) -> int:
    """The largest whole number up to which a type of real numbers holds every whole number."""
    return 2**24 if kind.bit_width == 32 else 2**53


def arrow_type(item: TypedElement) -> pa.DataType:
    """The Arrow type of a column's values or of an array's elements."""
    items = getattr(item, "items", None)
    return pa.list_(arrow_type(items)) if items is not None else _ARROW[item.arrow_type]


def arrow_schema(contract: Contract) -> pa.Schema:
    """The Arrow schema of rows that keep the contract, in the contract's column order."""
    return schema_of(contract.columns)


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of `columns`."""
    return pa.schema([pa.field(column.name, arrow_type(column)) for column in columns])


def spark_schema(contract: Contract) -> dict[str, Any]:
    """The same as a document for `pyspark.sql.types.StructType.fromJson`."""

    def spark_type(item: TypedElement) -> Any:
        items = getattr(item, "items", None)
        if items is None:
            return _SPARK[item.arrow_type]
        return {"type": "array", "elementType": spark_type(items), "containsNull": True}

    return {
        "type": "struct",
        "fields": [
            {"name": column.name, "type": spark_type(column), "nullable": True, "metadata": {}}
            for column in contract.columns
        ],
    }


def require_columns(found: pa.Schema, contract: Contract, where: str) -> None:
    """Raises ContractBroken unless `found` has exactly the contract's columns, each of a fitting family of types.

    A float may stand where an integer is asked for, and any width of integer for any other: whether each value fits
    is asked row by row. Text where a number belongs breaks the contract as a whole.
    """
    wanted = arrow_schema(contract)
    missing = [name for name in wanted.names if name not in found.names]
    extra = [name for name in found.names if name not in wanted.names]
    wrong = [
        f"{name} is {found.field(name).type}, not {wanted.field(name).type}"
        for name in wanted.names
        if found.names.count(name) == 1 and not is_compatible(found.field(name).type, wanted.field(name).type)
    ]
    twice = sorted({name for name in found.names if found.names.count(name) > 1})
    problems = [
        *(f"column {name} is there twice" for name in twice),
        *(f"column {name} is missing" for name in missing),
        *(f"column {name} is not in the contract" for name in extra),
        *(f"column {description}" for description in wrong),
    ]
    if problems:
        raise ContractBroken(
            "; ".join(problems),
            required=f"the columns {', '.join(wanted.names)} of contract {contract.name} {contract.version}",
            where=where,
            remedy="mend the data at its source, or release a new version of the contract",
        )


def is_compatible(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of type `found` may stand where `wanted` is asked for, if each of them fits."""
    if pa.types.is_null(found):  # a column without a single value has the type of none
        return True
    if pa.types.is_list(wanted):
        is_array = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return is_array and is_compatible(found.value_type, wanted.value_type)
    return _family(found) == _family(wanted)


def _family(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    return "date" if pa.types.is_date(kind) else str(kind)
