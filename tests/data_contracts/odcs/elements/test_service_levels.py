"""The service levels of a contract: freshness is a rule."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bloomery.data_contracts.odcs.contract import Contract
from tests.data_contracts.odcs.quality_checks import DOCUMENT


@pytest.mark.parametrize(
    ("entry", "seconds"),
    [
        ({"property": "freshness", "value": 4, "unit": "d", "element": "trips.pickup"}, 4 * 86400),
        ({"property": "latency", "value": 90, "unit": "m", "element": "pickup"}, 5400),
        ({"property": "LY", "value": 0.5, "unit": "Hours", "element": "trips.pickup"}, 1800),
        ({"property": "freshness", "value": 1, "unit": "y", "element": "pickup"}, 365 * 86400),
    ],
)
def test_freshness_is_a_rule(entry, seconds):
    rule = Contract.model_validate({**DOCUMENT, "slaProperties": [entry]}).rules()[-1]
    assert (rule.target, rule.kind, rule.high) == ("pickup", "fresh", seconds)


@pytest.mark.parametrize("name", ["seen, last", "trips.pickup", "last.seen"])
def test_the_column_of_a_freshness_may_have_any_name(contract_of, name):
    level = {"property": "freshness", "value": 4, "unit": "d", "element": name}
    contract = contract_of({"name": name, "logicalType": "timestamp"}, slaProperties=[level])
    assert (contract.rules()[-1].target, contract.rules()[-1].kind) == (name, "fresh")


def test_other_service_levels_are_not_rules():
    levels = [{"property": "retention", "value": 3, "unit": "y"}, {"property": "endOfLife", "value": "2042-05-12"}]
    contract = Contract.model_validate({**DOCUMENT, "slaProperties": levels})
    assert "fresh" not in {rule.kind for rule in contract.rules()}
    assert [str(item) for item in contract.unchecked] == [
        "service level retention 3 y: only freshness is checked",
        "service level endOfLife 2042-05-12: only freshness is checked",
    ]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"property": "freshnes", "value": 4, "unit": "d", "element": "pickup"}, "did you mean 'freshness'"),
        ({"property": "freshness", "value": 4, "element": "pickup"}, "needs a unit"),
        ({"property": "freshness", "value": 4, "unit": "fortnights", "element": "pickup"}, "needs a unit"),
        ({"property": "freshness", "value": 4, "unit": "d"}, "needs element"),
        ({"property": "freshness", "value": 4, "unit": "d", "element": "dropoff"}, "there is no column dropoff"),
        ({"property": "freshness", "value": 4, "unit": "d", "element": "fare"}, "but must be date or timestamp"),
        ({"property": "freshness", "value": -4, "unit": "d", "element": "pickup"}, "above 0"),
        ({"property": "freshness", "value": True, "unit": "d", "element": "pickup"}, "above 0"),
        ({"property": "freshness", "value": "4", "unit": "d", "element": "pickup"}, "above 0"),
    ],
)
def test_a_freshness_that_cannot_be_checked_is_listed(entry, reason):
    contract = Contract.model_validate({**DOCUMENT, "slaProperties": [entry]})
    assert "fresh" not in {rule.kind for rule in contract.rules()}
    assert [reason in str(item) for item in contract.unchecked] == [True]


def test_an_unknown_key_of_a_service_level_is_refused():
    entry = {"property": "freshness", "value": 4, "unit": "d", "elment": "pickup"}
    with pytest.raises(ValidationError, match="elment"):
        Contract.model_validate({**DOCUMENT, "slaProperties": [entry]})


def test_the_smaller_of_two_limits_of_age_is_checked():
    levels = [
        {"property": "freshness", "value": 4, "unit": "d", "element": "pickup, pickup"},
        {"property": "latency", "value": 2, "unit": "d", "element": "trips.pickup"},
    ]
    rules = Contract.model_validate({**DOCUMENT, "slaProperties": levels}).rules()
    assert [rule.high for rule in rules if rule.kind == "fresh"] == [2 * 86400]
