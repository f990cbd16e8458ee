"""Formats scores: accuracy of a classification, RMSE of a regression in the units of the label."""

from __future__ import annotations

import math

from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.tensor_layout import Task

SCORE_NAMES: dict[Task, str] = {"classification": "accuracy", "regression": "RMSE"}
DEGRADATION_NAMES: dict[Task, str] = {"classification": "drop", "regression": "rise"}  # the change of a worse score


def format_score(task: Task, score: Interval) -> str:
    """The score with its 95% interval, such as `92.1% (91.2–93.0)` or `21.2 (20.4–22.0)`, without its name."""
    if task == "classification":
        return f"{score.value:.1%} ({score.low * 100:.1f}–{score.high * 100:.1f})"
    decimals = _decimals(score.value)
    return f"{score.value:,.{decimals}f} ({score.low:,.{decimals}f}–{score.high:,.{decimals}f})"


def format_score_value(task: Task, value: float) -> str:
    """A score without an interval, such as `92.15%` or `21.2`."""
    return f"{value:.2%}" if task == "classification" else f"{value:,.{_decimals(value)}f}"


def format_degradation(task: Task, degradation: float) -> str:
    """A degradation: `0.52 pp` of accuracy, or `1.30%` of the baseline's RMSE."""
    return f"{degradation * 100:.2f} pp" if task == "classification" else f"{degradation:.2%}"


def _decimals(value: float) -> int:
    """The number of decimals that show three significant digits."""
    if value == 0 or not math.isfinite(value):
        return 1
    return max(2 - math.floor(math.log10(abs(value))), 0)
