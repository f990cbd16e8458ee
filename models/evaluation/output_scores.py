"""Scores of a regression with several outputs: means over the outputs, each in deviations of its label.

A missing label is nan, and counts for nothing. Shapes: N rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bloomery.data_contracts.records.records import Interval
from bloomery.models.evaluation.block_bootstrap import bootstrap_interval

_TINY = np.finfo(np.float64).tiny
# Of the means of columns (..., C) of one output, the errors first: the score of the output.
Statistic = Callable[[np.ndarray], np.ndarray]


def has_labels(truth_NK: np.ndarray) -> bool:
    """Whether each output has a row with a label."""
    return bool(is_known(truth_NK).any(axis=0).all())


def is_known(truth_NK: np.ndarray) -> np.ndarray:
    """Which labels are there: numbers that are not nan, and classes that are not negative."""
    return np.asarray(truth_NK >= 0 if np.issubdtype(truth_NK.dtype, np.integer) else ~np.isnan(truth_NK))


def has_variance(truth_NK: np.ndarray) -> bool:
    """Whether each output has two different labels."""
    known = [column_N[~np.isnan(column_N)] for column_N in truth_NK.T]
    return all(len(labels) > 0 and np.ptp(labels) > 0 for labels in known)


def mean_output_score(name: str, truth_NK: np.ndarray, predictions_NK: np.ndarray) -> float:
    """The mean score over the outputs with a label in any row; nan if there is none.

    Args:
        name: mean_rmse, mean_mae or mean_r2.
    """
    columns_KNC, statistic = _columns(name, truth_NK, predictions_NK)
    return float(_mean_of_known([statistic(columns_NC.mean(axis=0)) for columns_NC in columns_KNC]))


def output_score_interval(name: str, truth_NK: np.ndarray, predictions_NK: np.ndarray) -> Interval:
    """The mean score over the outputs with its 95% interval, from a bootstrap that draws all outputs of rows together.

    Outputs without a label in any row do not count. Rows must be ordered so that dependent rows are close to each
    other, and one of them must have a label.
    """
    columns_KNC, statistic = _columns(name, truth_NK, predictions_NK)
    return _bootstrap(columns_KNC, lambda parts: _mean_of_known([statistic(part) for part in parts]))


def output_degradation_interval(
    name: str, truth_NK: np.ndarray, before_NK: np.ndarray, after_NK: np.ndarray
) -> Interval:
    """How much worse `after` is than `before`, with a 95% interval: a drop of R², or the relative rise of an error.

    The arguments are those of `output_score_interval`.
    """
    sides = [_columns(name, truth_NK, values_NK) for values_NK in (before_NK, after_NK)]
    statistic = sides[0][1]
    columns_KNC = [np.concatenate(pair, axis=1) for pair in zip(sides[0][0], sides[1][0], strict=True)]
    width = columns_KNC[0].shape[1] // 2

    def change(parts: list[np.ndarray]) -> np.ndarray:
        before = _mean_of_known([statistic(part[..., :width]) for part in parts])
        after = _mean_of_known([statistic(part[..., width:]) for part in parts])
        return np.asarray(before - after if name == "mean_r2" else after / np.maximum(before, _TINY) - 1)

    return _bootstrap(columns_KNC, change)


def _bootstrap(columns_KNC: list[np.ndarray], statistic: Callable[[list[np.ndarray]], np.ndarray]) -> Interval:
    rows_NC = np.concatenate(columns_KNC, axis=1)
    edges = np.cumsum([columns_NC.shape[1] for columns_NC in columns_KNC])[:-1]

    means_C = rows_NC.mean(axis=0)
    value = float(statistic(np.split(means_C, edges)))

    def of_means(means: np.ndarray) -> np.ndarray:
        scores = statistic(np.split(means, edges, axis=-1))
        return np.where(np.isnan(scores), value, scores)  # rows without any label say nothing

    # The influence of a row, by a small step from the means towards the row.
    step = 1e-4
    influence_N = np.asarray(of_means(means_C + step * (rows_NC - means_C)))
    low, high = bootstrap_interval(rows_NC, of_means, influence_N)
    return Interval(value=value, low=min(low, value), high=max(high, value))


def _columns(name: str, truth_NK: np.ndarray, predictions_NK: np.ndarray) -> tuple[list[np.ndarray], Statistic]:
    """For each output the columns (N, C) whose means determine its score, and the score as a function of the means.

    An output without a label in any of these rows, such as those of a slice, has no score.
    """
    has_labels_K = is_known(truth_NK).any(axis=0)
    truth_NK, predictions_NK = truth_NK[:, has_labels_K], predictions_NK[:, has_labels_K]
    columns = []
    for truth_N, predicted_N in zip(truth_NK.T, predictions_NK.T, strict=True):
        is_known_N = ~np.isnan(truth_N)
        labels_N, errors_N = np.where(is_known_N, truth_N, 0.0), np.where(is_known_N, predicted_N - truth_N, 0.0)
        errors_N = np.abs(errors_N) if name == "mean_mae" else np.square(errors_N)
        moments = [labels_N, np.square(labels_N)] if name == "mean_r2" else []
        columns.append(np.stack([errors_N, is_known_N.astype(np.float64), *moments], axis=1))
    return columns, {"mean_rmse": _root_of_mean, "mean_mae": _mean, "mean_r2": _explained}[name]


def _mean_of_known(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over the first axis of scores that are not nan; nan if there is none."""
    values = np.asarray(scores)
    is_known = ~np.isnan(values)
    sums, counts = np.where(is_known, values, 0.0).sum(axis=0), is_known.sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _mean(means: np.ndarray) -> np.ndarray:
    return np.where(means[..., 1] > 0, means[..., 0] / np.maximum(means[..., 1], _TINY), np.nan)


def _root_of_mean(means: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean(means))


def _explained(means: np.ndarray) -> np.ndarray:
    known = np.maximum(means[..., 1], _TINY)
    variance = means[..., 3] / known - (means[..., 2] / known) ** 2
    return np.where(means[..., 1] > 0, 1 - means[..., 0] / known / np.maximum(variance, _TINY), np.nan)
