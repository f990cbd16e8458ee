"""What is said about a model's answers: shares with their intervals, differences on the same rows, confusions."""

from __future__ import annotations

import math

import numpy as np

from data_contracts.records import Interval

Z_95 = 1.959963984540054  # the two-sided 95% point of the normal distribution


def accuracy(correct: np.ndarray) -> Interval:
    """The share of `correct` (bool, any length from 1) with Wilson's 95% score interval.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    n = len(correct)
    share = float(np.mean(correct))
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n * n))
    return Interval(value=share, low=max(min(centre - half, share), 0.0), high=min(max(centre + half, share), 1.0))


def accuracy_drop(correct_before: np.ndarray, correct_after: np.ndarray) -> Interval:
    """How much accuracy falls from one model to another on the same rows, with Tango's 95% score interval.

    Positive is worse. Only rows on which exactly one of the two is right carry information; the interval stays honest
    when there are few or none of them, where the textbook interval has no width.

    Source: Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", equations 5 to 9.
    """
    n = len(correct_before)
    lost = int(np.sum(correct_before & ~correct_after))
    gained = int(np.sum(~correct_before & correct_after))
    value = (lost - gained) / n
    return Interval(
        value=value,
        low=_tango_limit(lost, gained, n, value, -1.0),
        high=_tango_limit(lost, gained, n, value, 1.0),
    )


def _tango_score(lost: int, gained: int, n: int, drop: float) -> float:
    """Tango's score statistic for the hypothesis that the true drop is `drop`."""
    a = 2 * n
    b = -lost - gained + (2 * n - lost + gained) * drop
    c = -gained * drop * (1 - drop)
    # The maximum-likelihood share of gains under the hypothesis.
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * share + drop * (1 - drop))
    numerator = lost - gained - n * drop
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def _tango_limit(lost: int, gained: int, n: int, value: float, end: float) -> float:
    """Where the score leaves the 95% band between the estimate and `end`, by bisection."""
    inside, outside = value, end
    for _ in range(80):
        middle = (inside + outside) / 2
        if abs(_tango_score(lost, gained, n, middle)) <= Z_95:
            inside = middle
        else:
            outside = middle
    return inside


def confusion(truth: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts int64 (K, K): rows are true classes, columns are answers."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (truth, answers), 1)
    return counts
