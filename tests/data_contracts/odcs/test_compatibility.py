"""The changes between two versions of a contract, and the version number that they require."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.odcs.compatibility import diff_contracts, is_at_least, required_version
from bloomery.data_contracts.odcs.contract import Contract
from tests.examples import examples

COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "logicalType": "integer", "physicalType": "int32", "primaryKey": True},
    {"name": "fare", "logicalType": "number", "logicalTypeOptions": {"minimum": 0, "maximum": 100}},
    {
        "name": "kind",
        "logicalType": "string",
        "required": True,
        "quality": [{"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": ["a", "b"]}}],
    },
]
Edit = Callable[[list[dict[str, Any]]], None]


def options(**keys: Any) -> Edit:
    return lambda columns: columns[1].update(logicalTypeOptions={"minimum": 0, "maximum": 100, **keys})


def check(**keys: Any) -> Edit:
    return lambda columns: columns[2]["quality"][0].update(keys)


def column(position: int, **keys: Any) -> Edit:
    return lambda columns: columns[position].update(keys)


def custom(position: int, name: str, value: Any) -> Edit:
    return column(position, customProperties=[{"property": name, "value": value}])


def changed(contract_of: Callable[..., Contract], edit: Edit) -> Contract:
    columns = copy.deepcopy(COLUMNS)
    edit(columns)
    return contract_of(*columns)


@pytest.mark.parametrize(
    ("edit", "kind", "where", "sentence"),
    [
        (lambda columns: columns.pop(1), "breaking", "fare", "the column was removed"),
        (
            lambda columns: columns.append({"name": "tip", "logicalType": "number", "required": True}),
            "breaking",
            "tip",
            "new and required",
        ),
        (
            lambda columns: columns.append({"name": "tip", "logicalType": "number"}),
            "compatible",
            "tip",
            "new and optional",
        ),
        (column(0, physicalType="int64"), "compatible", "id", "int32 became int64"),
        (column(0, physicalType="int16"), "breaking", "id", "int32 became int16"),
        (column(0, physicalType="uint32"), "breaking", "id", "int32 became uint32"),
        (column(0, logicalType="number", physicalType="float64"), "breaking", "id", "int32 became double"),
        (column(1, physicalType="float32"), "breaking", "fare", "double became float"),
        (options(maximum=200), "compatible", "fare", "at most 100, and now must be at least 0 and at most 200"),
        (options(maximum=50), "breaking", "fare", "at most 50"),
        (options(exclusiveMaximum=100), "breaking", "fare", "less than 100"),
        (options(minimum=None), "compatible", "fare", "now must be at most 100"),
        (column(1, logicalTypeOptions={}), "compatible", "fare", "no longer required"),
        (column(1, required=True), "breaking", "fare", "a new error: must not be null"),
        (column(2, required=False), "breaking", "kind", "no longer required: must not be null"),
        (column(0, primaryKey=False, required=True), "breaking", "id", "no longer required: must be unique"),
        (check(arguments={"validValues": ["a", "b", "c"]}), "compatible", "kind", "a, b, c"),
        (check(arguments={"validValues": ["a"]}), "breaking", "kind", "one of a"),
        (check(severity="warning"), "compatible", "kind", "error became warning"),
        (
            check(unit="percent"),
            "breaking",
            "kind",
            "tolerated only as many rows as quarantineLimit allows, and now 0 of",
        ),
        (
            lambda columns: (
                columns[2]["quality"].append({"metric": "nullValues", "mustBe": 0, "severity": "warning"})
                or columns[2].update(required=False)
            ),
            "breaking",
            "kind",
            "error became warning",
        ),
        (custom(1, "unit", "USD"), "breaking", "fare", "the unit changed: None became USD"),
        (custom(1, "personal", "hash"), "breaking", "fare", "None became hash"),
        (custom(2, "unknownCategory", "other"), "compatible", "kind", "was refused and is counted as other"),
        (custom(2, "owner", "Ada"), "note", "kind", "customProperties changed"),
        (column(1, description="What was paid."), "note", "fare", "description changed"),
        (lambda columns: columns.reverse(), "note", "", "the order of the columns changed: kind, fare, id"),
    ],
)
def test_a_change_is_described_with_its_kind(contract_of, edit, kind, where, sentence):
    (change,) = diff_contracts(contract_of(*COLUMNS), changed(contract_of, edit))
    assert (change.kind, change.where) == (kind, where)
    assert sentence in change.sentence


def test_a_changed_condition_is_one_removed_and_one_new_rule(contract_of):
    def condition(text: str) -> dict[str, Any]:
        return {"type": "custom", "engine": "bloomery", "implementation": {"rule": "expression", "expression": text}}

    old = contract_of(*COLUMNS, quality=[condition("fare > id")])
    new = contract_of(*COLUMNS, quality=[condition("fare >= id")])
    assert [(change.kind, change.sentence) for change in diff_contracts(old, new)] == [
        ("compatible", "no longer required: must satisfy fare > id"),
        ("breaking", "a new error: must satisfy fare >= id"),
    ]


def test_a_changed_quarantine_limit_is_reported(contract_of):
    def limit(share: float) -> Contract:
        return contract_of(*COLUMNS, customProperties=[{"property": "quarantineLimit", "value": share}])

    assert [change.kind for change in diff_contracts(limit(0.1), limit(0.2))] == ["compatible"]
    assert [change.kind for change in diff_contracts(limit(0.2), limit(0.1))] == ["breaking"]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (options(maximum=50), "2.0.0"),
        (options(maximum=200), "1.1.0"),
        (column(1, description="What was paid."), "1.0.1"),
        (lambda columns: None, "1.0.0"),
    ],
)
def test_the_changes_determine_the_required_version(contract_of, edit, expected):
    old = contract_of(*COLUMNS)
    assert required_version(old, diff_contracts(old, changed(contract_of, edit))) == expected


def test_versions_are_compared_as_numbers():
    assert is_at_least("10.0.0", "9.9.9")
    assert is_at_least("1.2.3", "1.2.3")
    assert not is_at_least("1.2.9", "1.2.10")


EDITS = st.sampled_from(
    [
        options(maximum=50),
        options(minimum=-1),
        column(0, physicalType="int64"),
        column(1, required=True),
        column(2, required=False),
        column(1, businessName="Fare"),
        column(2, logicalTypeOptions={"maxLength": 9}),
        check(severity="warning"),
        check(description="Kinds"),
        check(arguments={"validValues": ["b"]}),
        custom(1, "unit", "USD"),
        lambda columns: columns.insert(0, {"name": "new", "logicalType": "date"}),
        lambda columns: columns.reverse(),
    ]
)


@settings(deadline=None, max_examples=examples(100))
@given(edits=st.lists(EDITS, max_size=4))
def test_only_equal_contracts_have_no_changes(contract_of, edits):
    columns = copy.deepcopy(COLUMNS)
    try:
        for edit in edits:
            edit(columns)
        new = contract_of(*columns)
    except (ValidationError, KeyError):
        return
    old = contract_of(*COLUMNS)
    assert (diff_contracts(old, new) == []) == (old == new)
    assert diff_contracts(new, new) == []


def test_a_change_of_the_format_of_dates_is_described(contract_of):
    day = {"name": "day", "logicalType": "date", "required": True}
    iso, day_first, month_first = (
        contract_of({**day, "logicalTypeOptions": options})
        for options in ({}, {"format": "dd/MM/yyyy"}, {"format": "MM/dd/yyyy"})
    )
    (new,), (other,) = diff_contracts(iso, day_first), diff_contracts(day_first, month_first)
    assert (new.kind, new.sentence) == ("compatible", "the format changed: ISO 8601 became dd/MM/yyyy")
    assert (other.kind, other.sentence) == ("breaking", "the format changed: dd/MM/yyyy became MM/dd/yyyy")
