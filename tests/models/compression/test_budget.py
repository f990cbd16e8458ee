"""The budget section of a recipe and its short forms."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.models.compression.budget import Budget, LatencyLimit, ObjectiveWeights


@given(st.integers(1, 10_000))
def test_points_and_percent_are_parsed_as_shares(hundredths):
    share = float(Decimal(hundredths) / 10_000)
    text = f"{Decimal(hundredths) / 100:f}"
    budget = Budget(accuracy_drop=f"{text}pp", error_rise=f"{text} %")
    assert budget == Budget(accuracy_drop=share, error_rise=share)
    assert Budget.model_validate(budget.model_dump(mode="json")) == budget


def test_a_number_of_milliseconds_is_the_99th_percentile_for_one_row():
    assert Budget(latency_ms=2).latency_ms == LatencyLimit(batch_size=1, percentile=99, value=2.0)
    assert Budget(latency_ms={"batch_size": 8, "percentile": 50, "value": 2}).batch_size == 8
    assert Budget().batch_size == 1


def test_a_named_objective_has_all_the_weight():
    assert Budget(objective="size").objective == ObjectiveWeights(size=1)
    assert Budget().objective == Budget(objective="balanced").objective == ObjectiveWeights(size=0.5, latency=0.5)
    assert Budget(objective="latency").objective == ObjectiveWeights(latency=1)
    assert Budget(objective="energy").objective == ObjectiveWeights(energy=1)
    mixed = Budget(objective={"latency": 0.5, "size": 0.5, "energy": 1})
    assert Budget.model_validate(mixed.model_dump(mode="json")) == mixed


def test_a_short_form_overrides_all_fields_of_the_recipe():
    """A run overrides the recipe field by field, so `size` must set the weight of `latency` to 0."""
    short = Budget(objective="size", latency_ms=2).model_dump(exclude_unset=True)
    assert short == {
        "objective": {"size": 1.0, "latency": 0.0, "energy": 0.0},
        "latency_ms": {"batch_size": 1, "percentile": 99, "value": 2.0},
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accuracy_drop": "0.5%"}, "or 0.5pp"),
        ({"error_rise": "1pp"}, "or 0.5%"),
        ({"accuracy_drop": "1pp\n"}, "or 0.5pp"),
        ({"accuracy_drop": "101pp"}, "less than or equal to 1"),
        ({"slice_drop": 0}, "greater than 0"),
        ({"latency_ms": 0}, "greater than 0"),
        ({"latency_ms": True}, "dictionary"),
        ({"latency_ms": {"value": 1, "percentile": 98}}, "50, 90, 95 or 99"),
        ({"objective": "beauty"}, "size, latency, energy, or weights"),
        ({"objective": {"size": 0}}, "must weigh more than 0"),
        ({"objective": {"size": -1, "latency": 2}}, "greater than or equal to 0"),
        ({"objective": {"energy": 0}}, "must weigh more than 0"),
    ],
)
def test_an_invalid_budget_is_refused_with_the_valid_forms(fields, message):
    with pytest.raises(ValidationError, match=message):
        Budget(**fields)


def test_the_json_schema_has_all_short_forms():
    schema = Budget.model_json_schema()
    forms = {name: schema["properties"][name].get("anyOf") for name in schema["properties"]}
    number, text = forms["accuracy_drop"]
    assert (number["type"], number["exclusiveMinimum"], number["maximum"]) == ("number", 0, 1)
    assert (text["type"], text["pattern"]) == ("string", r"^[0-9]+(\.[0-9]+)? ?pp$")
    assert {"$ref": "#/$defs/LatencyLimit"} in forms["latency_ms"]
    assert {"type": "number", "exclusiveMinimum": 0} in forms["latency_ms"]
    assert {"enum": ["balanced", "size", "latency", "energy"], "type": "string"} in forms["objective"]
    assert {"$ref": "#/$defs/ObjectiveWeights"} in forms["objective"]
    assert schema["additionalProperties"] is False
