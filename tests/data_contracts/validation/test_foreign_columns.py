"""Columns of contracts from other tools: limits of dates, multiples, columns that are not read, physical names."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import ContractBroken
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused
from bloomery.data_contracts.validation.row_checks import require_columns

DAY = {"logicalType": "date", "logicalTypeOptions": {"minimum": "2024-01-02", "exclusiveMaximum": "2024-02-01"}}
TIME = {"logicalType": "timestamp", "logicalTypeOptions": {"maximum": "2024-01-01T12:00:00+02:00"}}
WRITTEN = {"logicalType": "date", "logicalTypeOptions": {"format": "dd.MM.yyyy", "maximum": "31.01.2024"}}
MULTIPLE = {"logicalType": "integer", "logicalTypeOptions": {"multipleOf": 6}}
OLD = {"logicalType": "number", "logicalTypeOptions": {"minimum": 0, "exclusiveMinimum": True}}


@pytest.mark.parametrize(
    ("column", "texts", "num_valid"),
    [
        (DAY, ["2024-01-02", "2024-01-31", "2024-01-01", "2024-02-01"], 2),
        (TIME, ["2024-01-01T10:00:00Z", "2024-01-01T12:00:00+02:00", "2024-01-01T10:00:01Z"], 2),
        (WRITTEN, ["2024-01-31", "2024-02-01"], 1),
        (MULTIPLE, [0, 12, -6, 5, 13], 3),
        (OLD, [0.5, 0.0, -1.0], 1),
    ],
    ids=["date", "time", "written date", "multiple", "v3.0"],
)
def test_limits_hold_in_training_and_at_the_endpoint(contract_of, quarantined_rows, column, texts, num_valid):
    contract = contract_of({"name": "v", "required": True, **column})
    assert contract.unchecked == ()
    parser = JsonRowParser(contract, ["v"])
    values: list[Any] = [parse_value(column["logicalType"], text) for text in texts]
    refused = quarantined_rows(pa.table({"v": values}), contract)
    assert refused == set(range(num_valid, len(texts)))
    for position, text in enumerate(texts):
        if position in refused:
            with pytest.raises(RowsRefused, match="v"):
                parser.parse_table([{"v": text}])
        else:
            assert parser.parse_table([{"v": text}])["v"].to_pylist() == [values[position]]


def parse_value(logical_type: str, text: Any) -> Any:
    if logical_type == "date":
        return dt.date.fromisoformat(text)
    return dt.datetime.fromisoformat(text) if logical_type == "timestamp" else text


def test_a_column_that_is_not_read_may_be_in_the_data_or_not(contract_of):
    contract = contract_of(
        {"name": "v", "logicalType": "integer"}, {"name": "place", "logicalType": "object", "required": True}
    )
    require_columns(pa.schema([("v", pa.int64())]), contract, "here")
    require_columns(pa.schema([("v", pa.int64()), ("place", pa.struct([("x", pa.int64())]))]), contract, "here")
    with pytest.raises(ContractBroken, match="column plaice is not in the contract"):
        require_columns(pa.schema([("v", pa.int64()), ("plaice", pa.string())]), contract, "here")


def test_data_with_physical_names_is_refused_with_the_renaming(contract_of):
    contract = contract_of({"name": "reference_date", "physicalName": "txn_ref_dt", "logicalType": "date"})
    with pytest.raises(ContractBroken) as caught:
        require_columns(pa.schema([("txn_ref_dt", pa.date32())]), contract, "here")
    assert "write `rename: {txn_ref_dt: reference_date}` in the recipe's data" in caught.value.remedy
