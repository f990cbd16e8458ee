"""Scores of several outputs: means over the outputs, of numbers each in deviations of its label.

A missing number is nan and a missing class is negative; they count for nothing. Shapes: N rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bloomery.data_contracts.records.records import Interval
from bloomery.models.evaluation.block_bootstrap import bootstrap_interval

_TINY = np.finfo(np.float64).tiny
_MIN_SHARE = 1e-12  # of a probability in the log loss
# Scores of classes that count right rows.
_ACCURACIES = ("mean_accuracy", "mean_balanced_accuracy", "exact_match")
_DROPS = ("mean_r2", *_ACCURACIES)  # scores of which more is better
# Of the means of columns (..., C) of one output, the errors first: the score of the output.
Statistic = Callable[[np.ndarray], np.ndarray]


def has_labels(truth_NK: np.ndarray) -> bool:
    """Whether each output has a row with a label."""
    return bool(_is_known(truth_NK).any(axis=0).all())


def _is_known(truth_NK: np.ndarray) -> np.ndarray:
    """Which labels are there: numbers that are not nan, and classes that are not negative."""
    return np.asarray(truth_NK >= 0 if np.issubdtype(truth_NK.dtype, np.integer) else ~np.isnan(truth_NK))


def has_variance(truth_NK: np.ndarray) -> bool:
    """Whether each output has two different labels."""
    known = [column_N[~np.isnan(column_N)] for column_N in truth_NK.T]
    return all(len(labels) > 0 and np.ptp(labels) > 0 for labels in known)


def score_outputs_of(name: str, truth_NK: np.ndarray, predictions_NK: np.ndarray) -> np.ndarray:
    """The scores (K,) of each output by itself, by the name of their mean.

    Outputs without a label in any row are left out. The exact match of all classes of a row is one score.

    Args:
        name: mean_rmse, mean_mae or mean_r2 of numbers; mean_accuracy, mean_balanced_accuracy, exact_match or
            mean_log_loss of classes, whose predictions are probabilities (N, K, C).
    """
    columns_KNC, statistic = _columns(name, truth_NK, predictions_NK)
    return np.array([float(statistic(columns_NC.mean(axis=0))) for columns_NC in columns_KNC])


def output_score_interval(name: str, truth_NK: np.ndarray, predictions_NK: np.ndarray) -> Interval:
    """The mean score over the outputs with its 95% interval, from a bootstrap that draws all outputs of rows together.

    Rows must be ordered so that dependent rows are close to each other.
    """
    columns_KNC, statistic = _columns(name, truth_NK, predictions_NK)
    return _bootstrap(columns_KNC, lambda parts: np.mean([statistic(part) for part in parts], axis=0))


def accuracy_of_classes(truth_NM: np.ndarray, predicted_NM: np.ndarray) -> Interval:
    """The mean accuracy over several labels, from positions of classes."""
    return output_score_interval("mean_accuracy", truth_NM, one_hot(predicted_NM))


def one_hot(classes_NM: np.ndarray) -> np.ndarray:
    """Positions of classes (N, M) as probabilities of 0 and 1: (N, M, K)."""
    return np.asarray(np.arange(classes_NM.max(initial=0) + 1) == classes_NM[:, :, None], np.float64)


def output_degradation_interval(
    name: str, truth_NK: np.ndarray, before_NK: np.ndarray, after_NK: np.ndarray
) -> Interval:
    """How much worse `after` is than `before`, with a 95% interval: a drop of R², or the relative rise of an error."""
    sides = [_columns(name, truth_NK, values_NK) for values_NK in (before_NK, after_NK)]
    statistic = sides[0][1]
    columns_KNC = [np.concatenate(pair, axis=1) for pair in zip(sides[0][0], sides[1][0], strict=True)]

    def change(parts: list[np.ndarray]) -> np.ndarray:
        before, after = (
            np.mean([statistic(np.split(part, 2, axis=-1)[side]) for part in parts], axis=0) for side in (0, 1)
        )
        return np.asarray(before - after if name in _DROPS else after / np.maximum(before, _TINY) - 1)

    if name not in _ACCURACIES:
        return _bootstrap(columns_KNC, change)
    value = float(change([columns_NC.mean(axis=0) for columns_NC in columns_KNC]))
    interval = _bootstrap(_add_half_rows(columns_KNC), change)
    low, high = (limit + value - interval.value for limit in (interval.low, interval.high))
    return Interval(value=value, low=low, high=high)


def _add_half_rows(columns_KNC: list[np.ndarray]) -> list[np.ndarray]:
    """Adds half a row in each direction of a disagreement, to each class: few rows that agree are no proof of equality.

    Source: Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    most = max(columns_NC.shape[1] // 4 for columns_NC in columns_KNC)
    extended = []
    for columns_NC in columns_KNC:
        num_classes = columns_NC.shape[1] // 4  # right and known rows of each class, before and after
        halves, zeros = np.zeros((2, most, num_classes)), np.zeros((most, num_classes))
        halves[:, range(num_classes), range(num_classes)] = 0.5
        lost, gained = [halves[0], halves[0], zeros, halves[0]], [zeros, halves[1], halves[1], halves[1]]
        rows = [np.concatenate(parts, axis=1) for parts in (lost, gained)]
        extended.append(np.concatenate([columns_NC, *rows]))
    return extended


def _bootstrap(columns_KNC: list[np.ndarray], statistic: Callable[[list[np.ndarray]], np.ndarray]) -> Interval:
    rows_NC = np.concatenate(columns_KNC, axis=1)
    edges = np.cumsum([columns_NC.shape[1] for columns_NC in columns_KNC])[:-1]

    def of_means(means: np.ndarray) -> np.ndarray:
        return statistic(np.split(means, edges, axis=-1))

    means_C = rows_NC.mean(axis=0)
    value = float(of_means(means_C))
    # The influence of a row, by a small step from the means towards the row.
    step = 1e-4
    influence_N = np.asarray(of_means(means_C + step * (rows_NC - means_C)))
    low, high = bootstrap_interval(rows_NC, of_means, influence_N)
    return Interval(value=value, low=min(low, value), high=max(high, value))


def _columns(name: str, truth_NK: np.ndarray, predictions_NK: np.ndarray) -> tuple[list[np.ndarray], Statistic]:
    """For each output the columns (N, C) whose means determine its score, and the score as a function of the means.

    An output without a label in any of these rows, such as those of a slice, has no score.
    """
    has_labels_K = _is_known(truth_NK).any(axis=0)
    truth_NK, predictions_NK = truth_NK[:, has_labels_K], predictions_NK[:, has_labels_K]
    if predictions_NK.ndim == 3:
        return _class_columns(name, truth_NK, predictions_NK)
    columns = []
    for truth_N, predicted_N in zip(truth_NK.T, predictions_NK.T, strict=True):
        is_known_N = ~np.isnan(truth_N)
        labels_N, errors_N = np.where(is_known_N, truth_N, 0.0), np.where(is_known_N, predicted_N - truth_N, 0.0)
        errors_N = np.abs(errors_N) if name == "mean_mae" else np.square(errors_N)
        moments = [labels_N, np.square(labels_N)] if name == "mean_r2" else []
        columns.append(np.stack([errors_N, is_known_N.astype(np.float64), *moments], axis=1))
    return columns, {"mean_rmse": _root_of_mean, "mean_mae": _mean, "mean_r2": _explained}[name]


def _class_columns(name: str, truth_NK: np.ndarray, shares_NKC: np.ndarray) -> tuple[list[np.ndarray], Statistic]:
    """For each output whether a class is right, or its cross entropy, and whether it is known: (N, 2).

    Of the balanced accuracy these are two columns for each class with rows. The exact match is one output.
    """
    is_known_NK, is_right_NK = _is_known(truth_NK), are_classes_right(truth_NK, shares_NKC)
    if name == "exact_match":
        is_right_N, is_known_N = np.all(is_right_NK | ~is_known_NK, axis=1), np.any(is_known_NK, axis=1)
        return [_pair(np.asarray(is_right_N), np.asarray(is_known_N))], _mean
    outputs = range(truth_NK.shape[1])
    if name == "mean_accuracy":
        return [_pair(is_right_NK[:, k], is_known_NK[:, k]) for k in outputs], _mean
    if name == "mean_balanced_accuracy":
        columns = []
        for truth_N, is_right_N in zip(truth_NK.T, is_right_NK.T, strict=True):
            is_class_NC = truth_N[:, None] == np.unique(truth_N[truth_N >= 0])
            columns.append(np.concatenate([is_class_NC & is_right_N[:, None], is_class_NC], axis=1).astype(np.float64))
        return columns, _mean_over_classes
    rows, positions_NK = np.arange(len(truth_NK))[:, None], np.maximum(truth_NK, 0)
    losses_NK = -np.log(np.maximum(shares_NKC[rows, np.array(outputs), positions_NK], _MIN_SHARE))
    return [_pair(losses_NK[:, k], is_known_NK[:, k]) for k in outputs], _mean


def are_classes_right(truth_NK: np.ndarray, shares_NKC: np.ndarray) -> np.ndarray:
    """Whether the most probable class of each output is the true one: bool (N, K), false where none is known."""
    return np.asarray(shares_NKC.argmax(axis=2) == truth_NK)


def _pair(values_N: np.ndarray, is_known_N: np.ndarray) -> np.ndarray:
    return np.stack([np.where(is_known_N, values_N, 0.0), is_known_N.astype(np.float64)], axis=1)


def _mean_over_classes(means: np.ndarray) -> np.ndarray:
    """The mean recall of the classes with rows."""
    right, known = np.split(means, 2, axis=-1)
    recalls = np.where(known > 0, right / np.maximum(known, _TINY), 0.0)
    return np.asarray(recalls.sum(axis=-1) / np.maximum((known > 0).sum(axis=-1), 1))


def _mean(means: np.ndarray) -> np.ndarray:
    return np.asarray(means[..., 0] / np.maximum(means[..., 1], _TINY))


def _root_of_mean(means: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean(means))


def _explained(means: np.ndarray) -> np.ndarray:
    known = np.maximum(means[..., 1], _TINY)
    variance = means[..., 3] / known - (means[..., 2] / known) ** 2
    return np.asarray(1 - means[..., 0] / known / np.maximum(variance, _TINY))
