"""The scores of each output of a regression with several labels, in the units of its label.

Shapes: N rows, K outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bloomery.data_contracts.records.output_units import OutputScore, OutputUnits, restore_units
from bloomery.data_contracts.records.score_format import format_score
from bloomery.models.evaluation import metrics
from bloomery.tasks.evaluation.scoring import GroundTruth


def score_each_output(
    outputs: tuple[OutputUnits, ...], truth: GroundTruth, predictions_NK: np.ndarray
) -> tuple[OutputScore, ...]:
    """The scores of each output with a label in any row; empty of other tasks.

    Truth and predictions are in standard units; rows without a label of the output do not count.
    """
    if not outputs:
        return ()
    labels_NK, values_NK = (
        restore_units(outputs, standard_NK[truth.order]) for standard_NK in (truth.truth, predictions_NK)
    )
    scores = []
    for output, labels_N, values_N in zip(outputs, labels_NK.T, values_NK.T, strict=True):
        is_known_N = ~np.isnan(labels_N)
        labels_N, values_N = labels_N[is_known_N], values_N[is_known_N]
        if len(labels_N):
            has_variance = bool(np.ptp(labels_N) > 0)
            scores.append(
                OutputScore(
                    name=output.name,
                    num_rows=len(labels_N),
                    rmse=metrics.rmse(labels_N, values_N),
                    mae=metrics.mean_absolute_error(labels_N, values_N),
                    r2=metrics.r_squared(labels_N, values_N) if has_variance else None,
                )
            )
    return tuple(scores)


def output_columns(scores: tuple[OutputScore, ...]) -> dict[str, list[Any]]:
    """The scores as columns of a table."""
    return {
        "output": [score.name for score in scores],
        "rows": [score.num_rows for score in scores],
        "rmse": [score.rmse.value for score in scores],
        "rmse_low": [score.rmse.low for score in scores],
        "rmse_high": [score.rmse.high for score in scores],
        "mae": [score.mae for score in scores],
        "r2": [score.r2 for score in scores],
    }


def describe_output(score: OutputScore) -> str:
    """An output with its scores: `width: RMSE 1.23 (1.19–1.27), R² 0.91`."""
    explained = "" if score.r2 is None else f", R² {score.r2:.2%}"
    return f"{score.name}: RMSE {format_score('regression', score.rmse)}{explained}"
