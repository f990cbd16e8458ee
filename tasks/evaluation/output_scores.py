"""The scores of each output of a regression with several labels, in the units of its label.

Shapes: N rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bloomery.data_contracts.records.output_units import (
    ClassOutput,
    ClassOutputScore,
    OutputScore,
    OutputUnits,
    restore_units,
)
from bloomery.data_contracts.records.score_format import format_score
from bloomery.data_contracts.records.scores import Score
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.calibration import calibration_bins, expected_calibration_error
from bloomery.models.evaluation.scores import compute_score
from bloomery.tasks.evaluation.scoring import GroundTruth

_BALANCED_ACCURACY = Score(name="balanced_accuracy")


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


def score_each_class_output(
    outputs: Sequence[ClassOutput], truth: GroundTruth, shares_NMK: np.ndarray
) -> tuple[ClassOutputScore, ...]:
    """The scores of each of several labels with classes that any row has; empty of other tasks."""
    scores = []
    for number, output in enumerate(outputs):
        is_known_N = truth.truth[:, number] >= 0
        truth_N, shares_NK = truth.truth[is_known_N, number], shares_NMK[is_known_N, number]
        if len(truth_N):
            scores.append(
                ClassOutputScore(
                    name=output.name,
                    num_rows=len(truth_N),
                    accuracy=metrics.accuracy(shares_NK.argmax(axis=1) == truth_N),
                    balanced_accuracy=compute_score(_BALANCED_ACCURACY, truth_N, shares_NK),
                    log_loss=metrics.log_loss(truth_N, shares_NK),
                    calibration_error=expected_calibration_error(calibration_bins(truth_N, shares_NK)),
                )
            )
    return tuple(scores)


def class_output_columns(scores: Sequence[ClassOutputScore]) -> dict[str, list[Any]]:
    """The scores as columns of a table."""
    return {
        "output": [score.name for score in scores],
        "rows": [score.num_rows for score in scores],
        "accuracy": [score.accuracy.value for score in scores],
        "accuracy_low": [score.accuracy.low for score in scores],
        "accuracy_high": [score.accuracy.high for score in scores],
        "balanced_accuracy": [score.balanced_accuracy for score in scores],
        "log_loss": [score.log_loss for score in scores],
        "calibration_error": [score.calibration_error for score in scores],
    }


def describe_class_output(score: ClassOutputScore) -> str:
    """A label with its scores: `colour: accuracy 92.1% (91.2–93.0), balanced 90.4%, log loss 0.21`."""
    accuracy = f"accuracy {format_score('classification', score.accuracy)}, balanced {score.balanced_accuracy:.2%}"
    return f"{score.name}: {accuracy}, log loss {score.log_loss:.3g}"


def name_class_rows(outputs: Sequence[ClassOutput], positions_NM: np.ndarray) -> list[list[str | None]]:
    """The names of the classes of each row, as texts; None for a missing label."""
    names = [list(map(str, output.classes)) for output in outputs]
    return [
        [None if position < 0 else of_label[position] for of_label, position in zip(names, row, strict=True)]
        for row in positions_NM.tolist()
    ]
