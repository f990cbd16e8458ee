"""Scores as text."""

import pytest

from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.score_format import (
    degradation_name,
    format_degradation,
    format_number,
    format_score,
    format_score_value,
)
from bloomery.data_contracts.records.scores import Score


@pytest.mark.parametrize(
    ("task", "limits", "text"),
    [
        ("classification", (0.9215, 0.9101, 0.93), "92.2% (91.0–93.0)"),
        ("regression", (21.24, 20.4, 22.03), "21.2 (20.4–22.0)"),
        ("regression", (0.01234, 0.01, 0.02), "0.0123 (0.0100–0.0200)"),
        ("regression", (1234567.0, 1.2e6, 1.3e6), "1,234,567 (1,200,000–1,300,000)"),
        ("regression", (0.0, 0.0, 0.0), "0.0 (0.0–0.0)"),
    ],
)
def test_a_score_is_formatted_with_its_interval_and_unit(task, limits, text):
    value, low, high = limits
    assert format_score(task, Interval(value=value, low=low, high=high)) == text


def test_a_degradation_is_in_points_of_accuracy_or_a_share_of_the_error():
    assert format_degradation("classification", 0.0052) == "0.52 pp"
    assert format_degradation("regression", 0.013) == "1.30%"
    assert (format_score_value("classification", 0.9), format_score_value("regression", 57.98)) == ("90.00%", "58.0")


def test_a_named_score_has_its_own_format():
    macro_f1, log_loss, mape = (Score.model_validate({"name": name}) for name in ("macro_f1", "log_loss", "mape"))
    assert format_score_value(macro_f1, 0.9) == "90.00%"
    assert format_score_value(log_loss, 0.25) == "0.250"
    assert format_score_value(mape, 0.25) == "25.00%"
    assert [degradation_name(score) for score in (macro_f1, log_loss, "regression")] == ["drop", "rise", "rise"]
    assert (format_degradation(macro_f1, 0.01), format_degradation(mape, 0.01)) == ("1.00 pp", "1.00%")
    assert Score(name="quantile_loss", quantile=0.9).title == "quantile loss (0.9)"


@pytest.mark.parametrize(
    ("value", "text"), [(51_640.4, "51,640"), (-1234567.8, "-1,234,568"), (547.82, "547.8"), (0.01234, "0.01234")]
)
def test_a_large_number_has_no_exponent(value, text):
    assert format_number(value) == text
