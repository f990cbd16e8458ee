"""The columns of a contract: contradictory rules, keys and custom properties."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.data_contracts.odcs.quality_checks import NONE, library, own


def column_of(**keys: Any) -> dict[str, Any]:
    return {"name": "v", **keys}


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (
            column_of(
                logicalType="integer",
                logicalTypeOptions={"minimum": 5},
                quality=[library("invalidValues", {"validValues": [1, 2]}, **NONE)],
            ),
            "no valid value satisfies the other rules",
        ),
        (
            column_of(
                logicalType="string",
                logicalTypeOptions={"maxLength": 2},
                quality=[library("invalidValues", {"validValues": ["abc"]}, **NONE)],
            ),
            "no valid value satisfies the other rules",
        ),
        (
            column_of(
                logicalType="integer",
                physicalType="uint8",
                quality=[library("invalidValues", {"validValues": [300]}, **NONE)],
            ),
            "no valid value",
        ),
        (
            column_of(
                logicalType="string",
                quality=[
                    library("invalidValues", {"validValues": ["a"]}, **NONE),
                    library("invalidValues", {"validValues": ["b"]}, **NONE),
                ],
            ),
            "no valid value",
        ),
        (
            column_of(
                logicalType="integer",
                logicalTypeOptions={"minimum": 5},
                quality=[own("between", maximum=4)],
            ),
            "no value can satisfy all of",
        ),
        (
            column_of(logicalType="number", quality=[own("between", minimum=5), own("between", exclusiveMaximum=5)]),
            "no value can satisfy all of",
        ),
        (
            column_of(
                logicalType="string",
                logicalTypeOptions={"minLength": 5},
                quality=[own("length", maxLength=4)],
            ),
            "no value can satisfy all of",
        ),
    ],
)
def test_contradictory_rules_are_refused(contract_of, column, reason):
    with pytest.raises(ValidationError, match=reason):
        contract_of(column)


@pytest.mark.parametrize(
    ("column", "kind", "sentences"),
    [
        (column_of(logicalType="string", required=True, quality=[library("nullValues", **NONE)]), "required", []),
        (
            column_of(
                logicalType="string", unique=True, quality=[library("duplicateValues", **NONE, severity="warning")]
            ),
            "unique",
            ["v: required twice: must be unique; only the stricter requirement is checked"],
        ),
        (
            column_of(
                logicalType="string",
                quality=[
                    library("nullValues", mustBeLessThan=5, unit="percent"),
                    library("nullValues", **NONE),
                    library("nullValues", mustBeLessThan=9, unit="percent", severity="warning"),
                ],
            ),
            "required",
            ["v: required twice: must not be null; only the stricter requirement is checked"] * 2,
        ),
    ],
)
def test_the_strictest_of_repeated_rules_is_checked(contract_of, column, kind, sentences):
    contract = contract_of(column)
    assert [(rule.kind, rule.severity, rule.tolerance) for rule in contract.rules()] == [(kind, "error", None)]
    assert [str(item) for item in contract.unchecked] == sentences


def test_an_array_is_no_key(contract_of):
    contract = contract_of(column_of(logicalType="array", items={"logicalType": "integer"}, unique=True))
    assert [rule.kind for rule in contract.rules()] == ["required"]
    assert "v: an array cannot be a key" in str(contract.unchecked[0])


def test_a_warning_may_be_tighter_than_the_error(contract_of):
    contract = contract_of(
        column_of(
            logicalType="integer",
            logicalTypeOptions={"maximum": 100},
            quality=[own("between", maximum=10, severity="warning"), own("between", maximum=-5, severity="warning")],
        )
    )
    assert [(rule.high, rule.severity) for rule in contract.rules()] == [
        (100, "error"),
        (10, "warning"),
        (-5, "warning"),
    ]


def test_a_composite_primary_key_is_unique(contract_of):
    contract = contract_of(
        {"name": "day", "logicalType": "date", "primaryKey": True, "primaryKeyPosition": 2},
        {"name": "shop", "logicalType": "string", "primaryKey": True, "primaryKeyPosition": 1},
    )
    assert [(rule.target, rule.kind, rule.columns) for rule in contract.rules()] == [
        ("", "unique", ("shop", "day")),
        ("day", "required", ()),
        ("shop", "required", ()),
    ]
    assert contract.rules()[0].sentence == "shop and day must be unique together"


@pytest.mark.parametrize(
    ("properties", "accessor", "value"),
    [
        ([{"property": "unit", "value": "km/h"}], "unit", "km/h"),
        ([], "unit", None),
        ([{"property": "personal", "value": True}], "personal", "drop"),
        ([{"property": "personal", "value": False}], "personal", None),
        ([{"property": "personal", "value": "hash"}], "personal", "hash"),
        ([], "personal", None),
        ([{"property": "unknownCategory", "value": "other"}], "unknown_category", "other"),
        ([{"property": "owner", "value": {"name": "Ada"}}], "unknown_category", "refuse"),
    ],
)
def test_a_custom_property_of_a_column_is_read(contract_of, properties, accessor, value):
    contract = contract_of({"name": "v", "logicalType": "string", "required": True, "customProperties": properties})
    assert getattr(contract.columns[0], accessor) == value
    assert contract.personal_columns == ({"v"} if contract.columns[0].personal else set())


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (
            {"property": "personal", "value": "yes"},
            "personal must be one of true, false, drop, hash, encrypt, not 'yes'",
        ),
        ({"property": "personal", "value": 1}, "personal must be one of"),
        ({"property": "unknownCategory", "value": "drop"}, "unknownCategory must be one of refuse, other"),
        ({"property": "owner", "valeu": 5}, "valeu"),
    ],
)
def test_an_invalid_custom_property_is_refused(contract_of, entry, reason):
    with pytest.raises(ValidationError, match=reason):
        contract_of({"name": "v", "logicalType": "string", "required": True, "customProperties": [entry]})


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"property": "units", "value": "km"}, "unknown custom property 'units' has no effect; did you mean 'unit'?"),
        ({"property": "unknowncategory", "value": "other"}, "did you mean 'unknownCategory'?"),
        ({"property": "personalData", "value": True}, "did you mean 'personal'?"),
        ({"property": "quarantineLimit", "value": 0.1}, "belongs to the schema object, not to a column"),
        ({"property": "unit", "value": 5}, "unit must be a text such as km, not 5"),
    ],
)
def test_a_custom_property_without_effect_is_listed(contract_of, entry, reason):
    contract = contract_of({"name": "v", "logicalType": "string", "required": True, "customProperties": [entry]})
    (item,) = contract.unchecked
    assert item.where == "v"
    assert reason in item.sentence
    assert (contract.columns[0].unit, contract.columns[0].personal) == (None, None)
