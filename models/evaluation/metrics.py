"""Metrics of predictions: scores with confidence intervals, paired differences, confusion matrices.

Shapes: N rows, K classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.records.records import Interval
from bloomery.models.evaluation.block_bootstrap import bootstrap_interval

Z_95 = 1.959963984540054  # the two-sided 95% point of the normal distribution


def accuracy(correct: np.ndarray) -> Interval:
    """The fraction of `correct` (bool, at least one), as in `proportion`."""
    return proportion(int(np.sum(correct)), len(correct))


def proportion(num_hits: int, num_all: int) -> Interval:
    """The proportion `num_hits` / `num_all`, `num_all` >= 1, with Wilson's 95% score interval.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    from scipy.stats import binomtest

    value = num_hits / num_all
    limits = binomtest(num_hits, num_all).proportion_ci(method="wilson")
    return Interval(value=value, low=min(float(limits.low), value), high=max(float(limits.high), value))


def accuracy_drop(correct_before: np.ndarray, correct_after: np.ndarray) -> Interval:
    """The drop of accuracy from one model to another on the same rows, with Tango's 95% score interval.

    Positive is worse. Only discordant rows are informative; unlike the Wald interval, this one remains valid when there
    are few or none.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", equations 5 to 9.
    """
    num_lost = int(np.sum(correct_before & ~correct_after))
    num_gained = int(np.sum(~correct_before & correct_after))
    return drop_of_counts(num_lost, num_gained, len(correct_before))


def drop_of_counts(num_lost: int, num_gained: int, num_rows: int) -> Interval:
    """`accuracy_drop` of rows of which only the first model has `num_lost` right, and only the second `num_gained`."""
    value = (num_lost - num_gained) / num_rows
    return Interval(
        value=value,
        low=_tango_limit(num_lost, num_gained, num_rows, value, -1.0),
        high=_tango_limit(num_lost, num_gained, num_rows, value, 1.0),
    )


def _tango_score(num_lost: int, num_gained: int, n: int, drop: float) -> float:
    """Tango's score statistic under the hypothesis that the true drop is `drop`."""
    a = 2 * n
    b = -num_lost - num_gained + (2 * n - num_lost + num_gained) * drop
    c = -num_gained * drop * (1 - drop)
    # The maximum-likelihood fraction of gains under the hypothesis.
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * share + drop * (1 - drop))
    numerator = num_lost - num_gained - n * drop
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def _tango_limit(num_lost: int, num_gained: int, n: int, value: float, end: float) -> float:
    """The limit between the estimate and `end` at which the score leaves the 95% band, by bisection."""
    inner, outer = value, end
    for _ in range(80):
        middle = (inner + outer) / 2
        if abs(_tango_score(num_lost, num_gained, n, middle)) <= Z_95:
            inner = middle
        else:
            outer = middle
    return inner


def confusion_matrix(truth: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 (K, K): rows are true classes, columns are predictions."""
    counts = np.bincount(truth * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def rmse(truth_N: np.ndarray, predictions_N: np.ndarray) -> Interval:
    """The root mean squared error, in the units of `truth_N`, with its 95% interval.

    Rows must be ordered so that dependent rows are close to each other. The interval of a single row has no width.
    """
    squared_N1 = _squared_errors(truth_N, predictions_N)[:, None]
    low, high = bootstrap_interval(squared_N1, lambda means: np.sqrt(means[..., 0]), squared_N1[:, 0])
    return Interval(value=float(np.sqrt(squared_N1.mean())), low=low, high=high)


def rmse_rise(truth_N: np.ndarray, before_N: np.ndarray, after_N: np.ndarray) -> Interval:
    """The relative rise of RMSE from one model to another on the same rows, as a fraction of the first's.

    Positive is worse. Rows must be ordered so that dependent rows are close to each other.
    """
    return loss_rise(_squared_errors(truth_N, before_N), _squared_errors(truth_N, after_N), is_squared=True)


def loss_rise(before_N: np.ndarray, after_N: np.ndarray, *, is_squared: bool = False) -> Interval:
    """The relative rise of a mean loss, or of the root of the mean of squares, from one model to another.

    Positive is worse. Rows must be ordered so that dependent rows are close to each other.
    """
    # Avoids a division by 0; compared with a model without errors, every error is a huge rise.
    losses_N2 = np.maximum(np.stack([before_N, after_N], axis=1), np.finfo(np.float64).tiny)
    means = losses_N2.mean(axis=0)

    def rise(means: np.ndarray) -> np.ndarray:
        ratios = means[..., 1] / means[..., 0]
        return np.asarray((np.sqrt(ratios) if is_squared else ratios) - 1)

    low, high = bootstrap_interval(losses_N2, rise, losses_N2[:, 1] / means[1] - losses_N2[:, 0] / means[0])
    return Interval(value=float(rise(means)), low=low, high=high)


def _squared_errors(truth_N: np.ndarray, predictions_N: np.ndarray) -> np.ndarray:
    return (np.asarray(predictions_N, np.float64) - np.asarray(truth_N, np.float64)) ** 2


def mean_absolute_error(truth_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """The mean absolute error, in the units of `truth_N`."""
    return float(np.abs(predictions_N - truth_N).mean())


def r_squared(truth_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """The coefficient of determination R²; 0 if `truth_N` has no variance."""
    variance = float(np.var(truth_N))
    return 1 - float(_squared_errors(truth_N, predictions_N).mean()) / variance if variance > 0 else 0.0


def log_loss(truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    """The mean cross entropy in nats of probabilities (N, K) for the true classes `truth_N` int64.

    Not scikit-learn's, which clips probabilities at 2e-16.
    """
    return float(cross_entropies(truth_N, shares_NK).mean())


def cross_entropies(truth_N: np.ndarray, shares_NK: np.ndarray) -> np.ndarray:
    """The cross entropy (N,) of each row, whose mean is `log_loss`."""
    true_shares = shares_NK[np.arange(len(truth_N)), truth_N]
    return np.asarray(-np.log(np.maximum(true_shares, np.finfo(np.float64).tiny)))


def roc_auc(is_positive_N: np.ndarray, scores_N: np.ndarray) -> float | None:
    """The area under the ROC curve; None if one of the classes is missing.

    Source: Hanley & McNeil 1982, "The meaning and use of the area under a receiver operating characteristic curve".
    """
    from sklearn.metrics import roc_auc_score

    if is_positive_N.all() or not is_positive_N.any():
        return None
    return float(roc_auc_score(is_positive_N, scores_N))


class ClassMetrics(NamedTuple):
    """Recall and precision of one class; None where there are no rows."""

    num_rows: int
    recall: float | None
    precision: float | None


def class_metrics(counts_KK: np.ndarray) -> list[ClassMetrics]:
    """The metrics of each class of a `confusion_matrix`."""
    num_right_K, num_rows_K, num_predicted_K = np.diag(counts_KK), counts_KK.sum(axis=1), counts_KK.sum(axis=0)
    return [
        ClassMetrics(
            int(num_rows),
            num_right / num_rows if num_rows else None,
            num_right / num_predicted if num_predicted else None,
        )
        for num_right, num_rows, num_predicted in zip(
            num_right_K.tolist(), num_rows_K.tolist(), num_predicted_K.tolist(), strict=True
        )
    ]
