"""A contract as an Arrow schema and as a Spark schema, and the types that are compatible with it."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from bloomery.data_contracts.errors import ContractBroken
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema, spark_schema
from bloomery.data_contracts.odcs.elements.physical_types import PHYSICAL_TYPES
from bloomery.data_contracts.validation.row_checks import require_columns

EVERY_TYPE = [
    {"name": f"{logical}_{position}", "logicalType": logical, "physicalType": physical, "required": True}
    for logical, names in PHYSICAL_TYPES.items()
    if logical != "array"
    for position, physical in enumerate(names)
]
ARRAY = {"name": "v", "logicalType": "array", "items": {"logicalType": "integer", "physicalType": "uint8"}}


def test_the_schema_has_the_types_of_the_contract(digits_contract):
    assert arrow_schema(digits_contract.columns) == pa.schema(
        [("id", pa.int64()), ("image", pa.list_(pa.uint8())), ("label", pa.int64())]
    )


def test_every_physical_type_is_an_arrow_type(contract_of):
    schema = arrow_schema(contract_of(*EVERY_TYPE).columns)
    # The names of types that Arrow prints differently.
    names = {
        "float": "float32",
        "double": "float64",
        "date32[day]": "date32",
        "timestamp[us, tz=UTC]": "timestamp[us, UTC]",
    }
    assert [names.get(str(field.type), str(field.type)) for field in schema] == [
        column["physicalType"] for column in EVERY_TYPE
    ]


def test_the_first_physical_type_is_the_default(contract_of):
    for logical, (default, *_) in PHYSICAL_TYPES.items():
        if logical != "array":
            column = {"name": "v", "logicalType": logical, "required": True}
            assert arrow_schema(contract_of(column).columns) == arrow_schema(
                contract_of({**column, "physicalType": default}).columns
            )


def test_the_types_in_spark_hold_every_value(contract_of):
    arrays = [
        {
            "name": f"many_{column['name']}",
            "logicalType": "array",
            "items": {"logicalType": column["logicalType"], "physicalType": column["physicalType"]},
        }
        for column in EVERY_TYPE
    ]
    contract = contract_of(*EVERY_TYPE, *arrays)
    in_spark = to_arrow_schema(StructType.fromJson(spark_schema(contract.columns)), timezone="UTC")
    assert in_spark.names == arrow_schema(contract.columns).names
    for field, spark_field in zip(arrow_schema(contract.columns), in_spark, strict=True):
        kind, spark_kind = field.type, spark_field.type
        if pa.types.is_list(kind):
            kind, spark_kind = kind.value_type, spark_kind.value_type
        is_larger_signed = pa.types.is_unsigned_integer(kind) and spark_kind.bit_width > kind.bit_width
        assert spark_kind == kind or is_larger_signed


@pytest.mark.parametrize(
    ("column", "actual"),
    [
        ({"name": "v", "logicalType": "integer"}, pa.int8()),
        ({"name": "v", "logicalType": "integer"}, pa.uint64()),
        ({"name": "v", "logicalType": "integer"}, pa.float64()),
        ({"name": "v", "logicalType": "number"}, pa.int64()),
        ({"name": "v", "logicalType": "string"}, pa.large_string()),
        ({"name": "v", "logicalType": "string"}, pa.null()),
        ({"name": "v", "logicalType": "boolean"}, pa.bool_()),
        ({"name": "v", "logicalType": "date"}, pa.date64()),
        ({"name": "v", "logicalType": "timestamp"}, pa.timestamp("ns")),
        (ARRAY, pa.list_(pa.float32())),
        (ARRAY, pa.large_list(pa.int64())),
        (ARRAY, pa.list_(pa.uint8(), 64)),
        (ARRAY, pa.list_(pa.null())),
        (ARRAY, pa.null()),
    ],
    ids=str,
)
def test_a_type_of_the_same_family_is_compatible(contract_of, column, actual):
    require_columns(pa.schema([("v", actual)]), contract_of({**column, "required": True}), where="here")


@pytest.mark.parametrize(
    ("column", "actual"),
    [
        ({"name": "v", "logicalType": "integer"}, pa.string()),
        ({"name": "v", "logicalType": "integer"}, pa.bool_()),
        ({"name": "v", "logicalType": "integer"}, pa.list_(pa.int64())),
        ({"name": "v", "logicalType": "string"}, pa.int64()),
        ({"name": "v", "logicalType": "string"}, pa.binary()),
        ({"name": "v", "logicalType": "boolean"}, pa.int8()),
        ({"name": "v", "logicalType": "date"}, pa.timestamp("us")),
        ({"name": "v", "logicalType": "timestamp"}, pa.date32()),
        ({"name": "v", "logicalType": "number"}, pa.decimal128(5, 2)),
        (ARRAY, pa.uint8()),
        (ARRAY, pa.list_(pa.string())),
        (ARRAY, pa.list_(pa.list_(pa.uint8()))),
    ],
    ids=str,
)
def test_a_type_of_another_family_breaks_the_contract(contract_of, column, actual):
    contract = contract_of({**column, "required": True})
    with pytest.raises(ContractBroken) as caught:
        require_columns(pa.schema([("v", actual)]), contract, where="here")
    assert caught.value.found == f"column v is {actual}, not {arrow_schema(contract.columns).field('v').type}"
    assert caught.value.where == "here"


@pytest.mark.parametrize(
    ("logical_type", "pattern", "actual", "is_read"),
    [
        ("date", "dd/MM/yyyy", pa.string(), True),
        ("timestamp", "dd/MM/yyyy HH:mm", pa.string(), True),
        ("date", "yyyy-MM-dd HH:mm:ss", pa.timestamp("ns"), True),  # as pandas writes dates
        ("date", "yyyy-MM-dd", pa.timestamp("ns"), False),
        ("date", "dd/MM/yyyy", pa.int64(), False),
    ],
)
def test_dates_may_be_written_in_the_format_of_the_contract(contract_of, logical_type, pattern, actual, is_read):
    column = {"name": "v", "logicalType": logical_type, "logicalTypeOptions": {"format": pattern}, "required": True}
    schema = pa.schema([("v", actual)])
    if is_read:
        require_columns(schema, contract_of(column), where="here")
    else:
        with pytest.raises(ContractBroken):
            require_columns(schema, contract_of(column), where="here")


def test_all_problems_of_the_columns_are_reported_together(digits_contract):
    schema = pa.schema([("id", pa.string()), ("label", pa.int64()), ("Image", pa.list_(pa.uint8()))])
    with pytest.raises(ContractBroken) as caught:
        require_columns(schema, digits_contract, where="here")
    assert caught.value.found == (
        "column image is missing; column Image is not in the contract; column id is string, not int64"
    )


def test_columns_may_come_in_any_order(digits_contract):
    schema = arrow_schema(digits_contract.columns)
    require_columns(pa.schema([schema.field(name) for name in reversed(schema.names)]), digits_contract, where="here")


def test_a_repeated_column_breaks_the_contract(contract_of):
    contract = contract_of({"name": "v", "logicalType": "integer", "required": True})
    with pytest.raises(ContractBroken):
        require_columns(pa.schema([("v", pa.int64()), ("v", pa.int64())]), contract, where="here")
