"""The endpoint's contract: windows where the data has single values, with the same limits on every value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.windowed_contract import with_windows
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused

HEAT: dict[str, Any] = {
    "name": "heat",
    "logicalType": "number",
    "physicalType": "float32",
    "required": True,
    "logicalTypeOptions": {"minimum": -50, "exclusiveMaximum": 60},
    "customProperties": [{"property": "unit", "value": "°C"}],
    "examples": [12.5],
}
ID = {"name": "id", "logicalType": "integer", "primaryKey": True}
WIND = {"name": "wind", "logicalType": "number"}
NAME = {"name": "name", "logicalType": "string", "required": True}


def expression(text: str) -> dict[str, Any]:
    return {"type": "custom", "engine": "bloomery", "implementation": {"rule": "expression", "expression": text}}


def test_a_contract_without_windows_is_served_as_it_is(contract_of: Callable[..., Contract]) -> None:
    contract = contract_of(ID, HEAT)
    assert with_windows(contract, {}) is contract


def test_a_window_has_its_length_and_every_value_its_limits(contract_of: Callable[..., Contract]) -> None:
    contract = with_windows(contract_of(ID, HEAT, NAME), {"heat": 3})
    check = JsonRowParser(contract, ["heat", "name"])
    assert check.parse_table([{"heat": [1, 2.5, -50], "name": "x"}])["heat"].to_pylist() == [[1, 2.5, -50]]
    column = contract.column("heat")
    assert column is not None
    assert column.is_required
    assert column.unit == "°C"
    for wrong in ([1, 2], [1, 2, 3, 4], [1, 2, 60], [1, None, 3], None, 4.0, [1, 2, "3"]):
        with pytest.raises(RowsRefused, match="column heat"):
            check.parse_table([{"heat": wrong, "name": "x"}])


def test_a_window_of_a_column_that_may_be_null_may_have_gaps(contract_of: Callable[..., Contract]) -> None:
    wind = {**WIND, "logicalTypeOptions": {"minimum": 0}}
    contract = with_windows(contract_of(ID, HEAT, wind), {"heat": 2, "wind": 2})
    check = JsonRowParser(contract, ["heat", "wind"])
    sent = [{"heat": [1, 2], "wind": [None, 2.5]}, {"heat": [1, 2], "wind": [None, None]}]
    assert check.parse_table(sent)["wind"].to_pylist() == [[None, 2.5], [None, None]]
    for wrong in ({"heat": [1, None], "wind": [1, 2]}, {"heat": [1, 2], "wind": None}, {"heat": [1, 2]}):
        with pytest.raises(RowsRefused, match=r"column (heat|wind)"):
            check.parse_table([wrong])
    with pytest.raises(RowsRefused, match=r"column wind\[1\]: found -1"):
        check.parse_table([{"heat": [1, 2], "wind": [None, -1]}])
    again = Contract.model_validate_json(contract.model_dump_json(by_alias=True, exclude_defaults=True))
    assert again == contract


def test_rules_that_read_a_single_value_are_left_out_and_all_others_stay(contract_of: Callable[..., Contract]) -> None:
    heat = {
        **HEAT,
        "unique": True,
        "quality": [
            {"metric": "invalidValues", "arguments": {"validValues": [1, 2]}, "mustBe": 0, "severity": "warning"}
        ],
    }
    wind = {**WIND, "quality": [expression("wind < heat"), expression("wind >= 0")]}
    table = [
        expression("heat > wind OR wind IS NULL"),
        expression("name <> 'heat'"),
        {"metric": "duplicateValues", "arguments": {"properties": ["name", "heat"]}, "mustBe": 0},
        {"type": "sql", "query": "SELECT avg(HEAT) FROM {object}", "mustBeLessThan": 9},
        {"type": "sql", "query": "SELECT max(wind) FROM {object}", "mustBeLessThan": 9},
        {"metric": "rowCount", "mustBeGreaterThan": 2},
    ]
    whole = contract_of(ID, heat, wind, NAME, quality=table)
    contract = with_windows(whole, {"heat": 2})
    left = [rule for rule in contract.rules() if rule not in whole.rules()]
    assert {rule.target for rule in left} == {"heat", "heat[]"}
    assert {rule.kind for rule in left} == {"between", "required", "num_items"}
    gone = [rule for rule in whole.rules() if rule not in contract.rules()]
    assert sorted(rule.kind for rule in gone if rule.column != "heat") == [
        "expression",
        "expression",
        "query",
        "unique",
    ]
    assert sorted(rule.kind for rule in gone if rule.column == "heat") == ["between", "in_set", "unique"]
    assert with_windows(contract, {}) == contract
    again = Contract.model_validate_json(contract.model_dump_json(by_alias=True, exclude_defaults=True))
    assert again.rules() == contract.rules()


def test_a_row_condition_about_other_columns_is_asked_of_the_row(contract_of: Callable[..., Contract]) -> None:
    contract = contract_of(ID, HEAT, WIND, NAME, quality=[expression("wind > 0"), expression("heat > wind")])
    check = JsonRowParser(with_windows(contract, {"heat": 2}), ["heat", "wind", "name"])
    check.parse_table([{"heat": [1, 2], "wind": 50, "name": "x"}])
    with pytest.raises(RowsRefused, match="wind = 0"):
        check.parse_table([{"heat": [1, 2], "wind": 0, "name": "x"}])
