"""Describes the comparison of a model with its baselines, for the terminal, the model card and errors."""

from __future__ import annotations

import re

from bloomery.data_contracts.records.records import BaselineComparison, Choice
from bloomery.data_contracts.records.score_format import (
    format_degradation,
    format_number,
    format_score,
    format_score_value,
)
from bloomery.data_contracts.records.scores import Score


def metric_part(name: str) -> str:
    """Returns a baseline's name as a part of the names of its metrics in MLflow, such as `boosted_trees`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def describe_comparison(score: Score, comparison: BaselineComparison) -> str:
    """Returns a phrase such as `boosted trees has 97.10%, 2.00 pp better (95% interval 0.80 pp to 3.20 pp)`.

    An error may be several times that of a baseline: `boosted trees has 18.2 (the model's error is 203% higher; …)`.
    """
    value = format_score_value(score, comparison.score.value)
    if score.is_error and comparison.degradation.value != 0:
        return f"{comparison.name} has {value} ({_describe_error(comparison)})"
    return f"{comparison.name} has {value}, {_describe_difference(score, comparison)}"


def _describe_difference(score: Score, comparison: BaselineComparison) -> str:
    """How much better or worse the baseline is, as seen from the baseline."""
    degradation = comparison.degradation
    if degradation.value == 0:
        low, high = (format_degradation(score, number) for number in (degradation.low, degradation.high))
        return f"no difference (95% interval {low} to {high})"
    direction = "better" if degradation.value > 0 else "worse"
    sign = 1 if degradation.value > 0 else -1
    ends = sorted((sign * degradation.low, sign * degradation.high))
    value, low, high = (format_degradation(score, number) for number in (abs(degradation.value), *ends))
    return f"{value} {direction} (95% interval {low} to {high})"


def _describe_error(comparison: BaselineComparison) -> str:
    """Returns by how much the model's error is higher or lower than that of the baseline."""
    degradation = comparison.degradation
    direction, sign = ("higher", 1) if degradation.value > 0 else ("lower", -1)
    ends = sorted((sign * degradation.low, sign * degradation.high))
    value, low, high = (f"{format_number(100 * number, digits=3)}%" for number in (abs(degradation.value), *ends))
    return f"the model's error is {value} {direction}; 95% interval {low} to {high}"


def verdict_on_baseline(comparison: BaselineComparison) -> str:
    """Returns whether the model beats the baseline, as one word or two."""
    return "beaten" if comparison.is_beaten else "better" if comparison.is_better else "no difference shown"


def baseline_rows(choice: Choice) -> list[dict[str, str]]:
    """Returns a row of text for each baseline, with the reason for those that were not fitted."""
    trained = choice.candidates.trained
    score, comparisons = trained.score, {comparison.name: comparison for comparison in choice.comparisons}
    rows = []
    for baseline in trained.baselines:
        comparison = comparisons.get(baseline.name)
        rows.append(
            {
                "baseline": baseline.name,
                f"{score.title} (95% interval)": "–" if baseline.score is None else format_score(score, baseline.score),
                "training rows": f"{baseline.num_rows:,}" if baseline.num_rows else "–",
                "verdict": f"not fitted: {baseline.reason}" if comparison is None else verdict_on_baseline(comparison),
            }
        )
    return rows


def explain_loss(choice: Choice) -> str | None:
    """Returns a sentence about the baselines that are not beaten; None if all are."""
    score, candidate = choice.candidates.trained.score, choice.candidate
    losses = [comparison for comparison in choice.comparisons if comparison.degradation.value > 0]
    if not losses:
        return None
    shown = [comparison for comparison in losses if comparison.is_better]
    remark = "The model loses to a baseline" if shown else "A baseline is ahead of the model, though not beyond chance"
    listed = "; ".join(describe_comparison(score, comparison) for comparison in shown or losses)
    value = format_score_value(score, candidate.score.value)
    return f"{remark}: {candidate.name} has {score.title} {value}, and {listed}."
