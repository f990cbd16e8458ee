"""The endpoint's contract of a time series: columns of windows, with the limits of the data on every value."""

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


def test_a_contract_without_windows_is_unchanged(contract_of: Callable[..., Contract]) -> None:
    contract = contract_of(ID, HEAT)
    assert with_windows(contract, {}) is contract


def test_a_window_has_a_fixed_length_and_limits_for_every_value(contract_of: Callable[..., Contract]) -> None:
    contract = with_windows(contract_of(ID, HEAT, NAME), {"heat": 3})
    parser = JsonRowParser(contract, ["heat", "name"])
    assert parser.parse_table([{"heat": [1, 2.5, -50], "name": "x"}])["heat"].to_pylist() == [[1, 2.5, -50]]
    column = contract.column("heat")
    assert column is not None
    assert column.is_required
    assert column.unit == "°C"
    for window in ([1, 2], [1, 2, 3, 4], [1, 2, 60], [1, None, 3], None, 4.0, [1, 2, "3"]):
        with pytest.raises(RowsRefused, match="column heat"):
            parser.parse_table([{"heat": window, "name": "x"}])


def test_a_window_of_an_optional_column_may_have_nulls(contract_of: Callable[..., Contract]) -> None:
    wind = {**WIND, "logicalTypeOptions": {"minimum": 0}}
    contract = with_windows(contract_of(ID, HEAT, wind), {"heat": 2, "wind": 2})
    parser = JsonRowParser(contract, ["heat", "wind"])
    rows = [{"heat": [1, 2], "wind": [None, 2.5]}, {"heat": [1, 2], "wind": [None, None]}]
    assert parser.parse_table(rows)["wind"].to_pylist() == [[None, 2.5], [None, None]]
    for row in ({"heat": [1, None], "wind": [1, 2]}, {"heat": [1, 2], "wind": None}, {"heat": [1, 2]}):
        with pytest.raises(RowsRefused, match=r"column (heat|wind)"):
            parser.parse_table([row])
    with pytest.raises(RowsRefused, match=r"column wind\[1\]: found -1"):
        parser.parse_table([{"heat": [1, 2], "wind": [None, -1]}])
    again = Contract.model_validate_json(contract.model_dump_json(by_alias=True, exclude_defaults=True))
    assert again == contract


def test_rules_about_single_values_are_removed_and_the_others_remain(contract_of: Callable[..., Contract]) -> None:
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
    original = contract_of(ID, heat, wind, NAME, quality=table)
    contract = with_windows(original, {"heat": 2})
    added = [rule for rule in contract.rules() if rule not in original.rules()]
    assert {rule.target for rule in added} == {"heat", "heat[]"}
    assert {rule.kind for rule in added} == {"between", "required", "num_items"}
    removed = [rule for rule in original.rules() if rule not in contract.rules()]
    assert sorted(rule.kind for rule in removed if rule.column != "heat") == [
        "expression",
        "expression",
        "query",
        "unique",
    ]
    assert sorted(rule.kind for rule in removed if rule.column == "heat") == ["between", "in_set", "unique"]
    assert with_windows(contract, {}) == contract
    again = Contract.model_validate_json(contract.model_dump_json(by_alias=True, exclude_defaults=True))
    assert again.rules() == contract.rules()


def test_a_row_condition_on_other_columns_remains(contract_of: Callable[..., Contract]) -> None:
    contract = contract_of(ID, HEAT, WIND, NAME, quality=[expression("wind > 0"), expression("heat > wind")])
    parser = JsonRowParser(with_windows(contract, {"heat": 2}), ["heat", "wind", "name"])
    parser.parse_table([{"heat": [1, 2], "wind": 50, "name": "x"}])
    with pytest.raises(RowsRefused, match="wind = 0"):
        parser.parse_table([{"heat": [1, 2], "wind": 0, "name": "x"}])
