"""Formats scores and degradations. A task stands for its default score, such as accuracy or RMSE."""

from __future__ import annotations

import math

from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.scores import Score, default_score
from bloomery.data_contracts.records.tensor_layout import Task

# Of the default scores, and of the change to a worse one.
SCORE_NAMES: dict[Task, str] = {
    "classification": "accuracy",
    "regression": "RMSE",
    "multilabel": "subset accuracy",
    "embedding": "nDCG@10",
    "ordinal": "accuracy",
    "multioutput": "mean RMSE",
    "multitask": "mean accuracy",
    "tagging": "tag accuracy",
}
DEGRADATION_NAMES: dict[Task, str] = {
    "classification": "drop",
    "regression": "rise",
    "multilabel": "drop",
    "embedding": "drop",
    "ordinal": "drop",
    "multioutput": "rise",
    "multitask": "drop",
    "tagging": "drop",
}


def degradation_name(score: Score | Task) -> str:
    """The word for the change to a worse score: `rise` for an error, and `drop` for any other score."""
    return "rise" if as_score(score).is_error else "drop"


def class_noun(task: Task) -> str:
    """The noun for what a model predicts: `class`, or `label` where a row may have several."""
    return "label" if task == "multilabel" else "class"


def format_score(score: Score | Task, interval: Interval) -> str:
    """The score with its 95% interval, such as `92.1% (91.2–93.0)` or `21.2 (20.4–22.0)`, without its name."""
    if as_score(score).facts.is_share:
        return f"{interval.value:.1%} ({interval.low * 100:.1f}–{interval.high * 100:.1f})"
    decimals = _decimals(interval.value)
    return f"{interval.value:,.{decimals}f} ({interval.low:,.{decimals}f}–{interval.high:,.{decimals}f})"


def format_number(value: float, digits: int = 4) -> str:
    """Returns a number with so many significant digits, and never with an exponent if it is large: `51,640`."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def format_score_value(score: Score | Task, value: float) -> str:
    """A score without an interval, such as `92.15%` or `21.2`."""
    return f"{value:.2%}" if as_score(score).facts.is_share else f"{value:,.{_decimals(value)}f}"


def format_degradation(score: Score | Task, degradation: float) -> str:
    """A degradation: `0.52 pp` of a share such as accuracy, or `1.30%` of the baseline's error."""
    return f"{degradation:.2%}" if as_score(score).is_error else f"{degradation * 100:.2f} pp"


def as_score(score: Score | Task) -> Score:
    """The default score of a task; a score is returned as it is."""
    return score if isinstance(score, Score) else default_score(score)


def _decimals(value: float) -> int:
    """The number of decimals that show three significant digits."""
    if value == 0 or not math.isfinite(value):
        return 1
    return max(2 - math.floor(math.log10(abs(value))), 0)
