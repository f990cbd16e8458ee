"""What the chosen candidate, in the form that ships, answered to the held-out rows: figures for its card.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.records.records import Choice, Interval
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.calibration import CalibrationBins, calibration_bins, expected_calibration_error
from bloomery.models.features.encoder import read_encoder
from bloomery.tasks.evaluation.held_out import read_measured_predictions
from bloomery.tasks.evaluation.scoring import GroundTruth, slice_table
from bloomery.tasks.evaluation.slices import bootstrap_order
from bloomery.tasks.infrastructure.settings import settings


class ClassResult(NamedTuple):
    """How one class is answered; None is a share of nothing."""

    name: str
    num_rows: int
    recall: Interval | None
    precision: Interval | None


class SliceResult(NamedTuple):
    """The score of the rows with one value of a column."""

    column: str
    value: str
    num_rows: int
    score: Interval


class CardMetrics(NamedTuple):
    """Of the held-out rows. `others` are further figures by their names in words."""

    score: Interval
    num_rows: int
    others: dict[str, float]
    classes: tuple[ClassResult, ...]
    slices: tuple[SliceResult, ...]
    reliability: CalibrationBins | None  # None of a regression
    calibration_error: float | None


def compute_card_metrics(chosen: Choice) -> CardMetrics:
    """Read from the answers that `compress` has kept; nothing is asked anew."""
    trained = chosen.candidates.trained
    dataset = trained.dataset
    answers = read_measured_predictions(chosen)
    keys = answers[dataset.key].combine_chunks()
    found = None
    if dataset.task == "classification":
        truth_N = _positions(answers["truth"], dataset.classes)
        given = np.array(answers["probabilities"].to_pylist(), np.float64)
        order = np.arange(len(keys))
        found = calibration_bins(truth_N, given)
        others = _others_of_classes(truth_N, given)
        classes = _of_classes(truth_N, given, dataset.classes)
    else:
        truth_N, given = answers["truth"].to_numpy(), answers["answer"].to_numpy()
        order = bootstrap_order(dataset, read_encoder(settings().path(dataset.encoder_uri)).features, keys)
        others = {
            "mean absolute error": metrics.mean_absolute_error(truth_N, given),
            "R²": metrics.r_squared(truth_N, given),
        }
        classes = ()
    return CardMetrics(
        score=chosen.candidate.score,
        num_rows=len(keys),
        others=others,
        classes=classes,
        slices=_of_slices(chosen, GroundTruth(keys, truth_N, order), given),
        reliability=found,
        calibration_error=None if found is None else expected_calibration_error(found),
    )


def _positions(labels: pa.ChunkedArray, classes: tuple[int | str, ...]) -> np.ndarray:
    """Of each label (N,) among the classes."""
    values = labels.combine_chunks()
    found = pc.index_in(values, pa.array(list(classes), values.type))
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def _others_of_classes(truth_N: np.ndarray, shares_NK: np.ndarray) -> dict[str, float]:
    others = {"log loss": metrics.log_loss(truth_N, shares_NK)}
    area = metrics.roc_auc(truth_N == 1, shares_NK[:, 1]) if shares_NK.shape[1] == 2 else None
    return others if area is None else others | {"AUC": area}


def _of_classes(truth_N: np.ndarray, shares_NK: np.ndarray, classes: tuple[int | str, ...]) -> tuple[ClassResult, ...]:
    """Shares with Wilson's 95% intervals."""
    counts_KK = metrics.confusion_matrix(truth_N, shares_NK.argmax(axis=1), len(classes))
    right_K, of_truth_K, of_answers_K = np.diag(counts_KK), counts_KK.sum(axis=1), counts_KK.sum(axis=0)
    return tuple(
        ClassResult(
            str(name),
            num,
            metrics.proportion(right, num) if num else None,
            metrics.proportion(right, answered) if answered else None,
        )
        for name, right, num, answered in zip(
            classes, right_K.tolist(), of_truth_K.tolist(), of_answers_K.tolist(), strict=True
        )
    )


def _of_slices(chosen: Choice, rows: GroundTruth, given: np.ndarray) -> tuple[SliceResult, ...]:
    trained = chosen.candidates.trained
    if not trained.slice_columns:
        return ()
    told = slice_table(trained.dataset, trained.slice_columns, rows, given)
    lines = zip(*(told[name] for name in ("column", "value", "rows", "score", "low", "high")), strict=True)
    return tuple(
        SliceResult(column, value, num, Interval(value=score, low=low, high=high))
        for column, value, num, score, low, high in lines
    )
