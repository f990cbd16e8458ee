"""Scores in words: accuracy for classes, RMSE in the units of the label for a regression."""

from __future__ import annotations

import math

from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.tensor_layout import Task

SCORE_NAMES: dict[Task, str] = {"classification": "accuracy", "regression": "RMSE"}
DEGRADATION_NAMES: dict[Task, str] = {
    "classification": "drop",
    "regression": "rise",
}  # of the score, where one is worse


def format_score(task: Task, score: Interval) -> str:
    """Without the score's name: `92.1% (91.2–93.0)`, or `21.2 (20.4–22.0)`, with the limits of the 95% interval."""
    if task == "classification":
        return f"{score.value:.1%} ({score.low * 100:.1f}–{score.high * 100:.1f})"
    decimals = _decimals(score.value)
    return f"{score.value:,.{decimals}f} ({score.low:,.{decimals}f}–{score.high:,.{decimals}f})"


def format_score_value(task: Task, figure: float) -> str:
    """A score without limits: `92.15%`, or `21.2`."""
    return f"{figure:.2%}" if task == "classification" else f"{figure:,.{_decimals(figure)}f}"


def format_degradation(task: Task, loss: float) -> str:
    """How much worse a score is: `0.52 pp` of accuracy, or `1.30%` of the other's RMSE."""
    return f"{loss * 100:.2f} pp" if task == "classification" else f"{loss:.2%}"


def _decimals(figure: float) -> int:
    """As many as show three digits that count."""
    if figure == 0 or not math.isfinite(figure):
        return 1
    return max(2 - math.floor(math.log10(abs(figure))), 0)
