"""Scores of several labels with classes: means over the labels, and the exact match of all.

A missing label has a negative position, and counts for nothing. A label without rows, as in a slice, has no score.

Shapes: N rows, M labels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.scores import Score, ScoreName
from bloomery.models.evaluation import metrics

# The score of a single label, of which a score of several labels is the mean.
_OF_ONE_LABEL: dict[str, ScoreName] = {
    "mean_accuracy": "accuracy",
    "mean_balanced_accuracy": "balanced_accuracy",
    "mean_log_loss": "log_loss",
}
_MIN_SHARE = 1e-12  # of a probability in the log loss


def score_labels(
    name: str,
    truth_NM: np.ndarray,
    shares_NMK: np.ndarray,
    compute: Callable[[Score, np.ndarray, np.ndarray], float],
) -> float:
    """The score of several labels; `compute` is that of one label, with the arguments of `compute_score`."""
    if name == "exact_match":
        return float(are_rows_right(truth_NM, shares_NMK).mean())
    score = Score(name=_OF_ONE_LABEL[name])
    parts = _known_labels(truth_NM)
    return float(np.mean([compute(score, truth_NM[rows, k], shares_NMK[rows, k]) for k, rows in parts]))


def label_score_interval(
    name: str,
    truth_NM: np.ndarray,
    shares_NMK: np.ndarray,
    measure: Callable[[Score, np.ndarray, np.ndarray], Interval],
) -> Interval:
    """The score with its 95% interval; `measure` is that of one label, with the arguments of `score_interval`."""
    if name == "exact_match":
        return metrics.accuracy(are_rows_right(truth_NM, shares_NMK))
    score = Score(name=_OF_ONE_LABEL[name])
    parts = _known_labels(truth_NM)
    intervals = [measure(score, truth_NM[rows, k], shares_NMK[rows, k]) for k, rows in parts]
    values_NM = _row_losses(truth_NM, shares_NMK) if name == "mean_log_loss" else are_right(truth_NM, shares_NMK)
    return _mean_interval(intervals, _correlate(values_NM, truth_NM >= 0))


def label_degradation_interval(
    name: str,
    truth_NM: np.ndarray,
    before_NMK: np.ndarray,
    after_NMK: np.ndarray,
    measure: Callable[[Score, np.ndarray, np.ndarray, np.ndarray], Interval],
) -> Interval:
    """The drop of a score, or the relative rise of the log loss, with its 95% interval.

    `measure` is that of one label, with the arguments of `degradation_interval`.
    """
    sides = (before_NMK, after_NMK)
    if name == "exact_match":
        return metrics.accuracy_drop(*(are_rows_right(truth_NM, shares_NMK) for shares_NMK in sides))
    if name == "mean_log_loss":
        is_known_NM = truth_NM >= 0
        weights_M = 1 / np.maximum(is_known_NM.mean(axis=0), 1 / len(truth_NM)) / is_known_NM.any(axis=0).sum()
        losses = [(_row_losses(truth_NM, shares_NMK) * is_known_NM * weights_M).sum(axis=1) for shares_NMK in sides]
        return metrics.loss_rise(losses[0], losses[1])
    score = Score(name=_OF_ONE_LABEL[name])
    parts = _known_labels(truth_NM)
    drops = [measure(score, truth_NM[rows, k], before_NMK[rows, k], after_NMK[rows, k]) for k, rows in parts]
    was_right_NM, is_right_NM = (are_right(truth_NM, shares_NMK).astype(np.int8) for shares_NMK in sides)
    return _mean_interval(drops, _correlate(was_right_NM - is_right_NM, truth_NM >= 0))


def are_right(truth_NM: np.ndarray, shares_NMK: np.ndarray) -> np.ndarray:
    """Whether the most probable class of each label is the true one: bool (N, M), false where none is known."""
    return np.asarray(shares_NMK.argmax(axis=2) == truth_NM)


def are_rows_right(truth_NM: np.ndarray, shares_NMK: np.ndarray) -> np.ndarray:
    """Whether all known labels of a row are right: bool (N,)."""
    return np.asarray((are_right(truth_NM, shares_NMK) | (truth_NM < 0)).all(axis=1))


def one_hot(classes_NM: np.ndarray) -> np.ndarray:
    """Positions of classes (N, M) as probabilities of 0 and 1: (N, M, K)."""
    return np.asarray(np.arange(classes_NM.max(initial=0) + 1) == classes_NM[:, :, None], np.float64)


def _known_labels(truth_NM: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The position of each label that any row has, and the positions of these rows."""
    rows = [np.flatnonzero(truth_NM[:, number] >= 0) for number in range(truth_NM.shape[1])]
    return [(number, known_rows) for number, known_rows in enumerate(rows) if len(known_rows)]


def _row_losses(truth_NM: np.ndarray, shares_NMK: np.ndarray) -> np.ndarray:
    """The cross entropy of each label (N, M); without meaning where none is known."""
    shares_NM = np.take_along_axis(shares_NMK, np.maximum(truth_NM, 0)[:, :, None], axis=2)[:, :, 0]
    return np.asarray(-np.log(np.maximum(shares_NM, _MIN_SHARE)))


def _correlate(values_NM: np.ndarray, is_known_NM: np.ndarray) -> np.ndarray:
    """The correlations from 0 to 1 of the means of labels that any row has, by the rows that have both of two labels.

    It is 1 where one of both does not vary, which makes intervals wider.
    """
    labels = np.flatnonzero(is_known_NM.any(axis=0))
    correlations = np.eye(len(labels))
    for row, first in enumerate(labels):
        for column, second in enumerate(labels[:row]):
            both_N = is_known_NM[:, first] & is_known_NM[:, second]
            left, right = values_NM[both_N, first].astype(np.float64), values_NM[both_N, second].astype(np.float64)
            varies = len(left) > 1 and np.ptp(left) > 0 and np.ptp(right) > 0
            correlation = max(float(np.corrcoef(left, right)[0, 1]), 0.0) if varies else 1.0
            counts = is_known_NM[:, first].sum() * is_known_NM[:, second].sum()
            correlations[row, column] = correlations[column, row] = correlation * both_N.sum() / np.sqrt(counts)
    return correlations


def _mean_interval(intervals: Sequence[Interval], correlations_MM: np.ndarray) -> Interval:
    """The mean of estimates that are correlated, with its 95% interval from theirs.

    Source: Zou & Donner 2008, "Construction of confidence limits about effect measures: a general approach".
    """
    value = float(np.mean([interval.value for interval in intervals]))
    below, above = (
        np.array([abs(limit - interval.value) for limit, interval in zip(limits, intervals, strict=True)])
        for limits in ([interval.low for interval in intervals], [interval.high for interval in intervals])
    )
    margins = [float(np.sqrt(side @ correlations_MM @ side)) / len(intervals) for side in (below, above)]
    return Interval(value=value, low=value - margins[0], high=value + margins[1])
