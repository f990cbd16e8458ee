"""Calibration: whether confidence matches accuracy.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

Shapes: N rows, K classes, S bins of confidence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NUM_BINS = 15


class CalibrationBins(NamedTuple):
    """Rows binned by the probability of the predicted class, with equal widths; NaN for bins without rows.

    Attributes:
        counts: int64 (S,), rows.
        confidence: float64 (S,), mean probability of the predicted classes.
        accuracy: float64 (S,), fraction of correct predictions.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration_bins(truth_N: np.ndarray, shares_NK: np.ndarray, num_steps: int = NUM_BINS) -> CalibrationBins:
    """Bins rows by the probability of their predicted class, the most probable one."""
    given_N = shares_NK.max(axis=1)
    is_right_N = shares_NK.argmax(axis=1) == truth_N
    # Bins include the upper edge, not the lower one.
    steps_N = np.clip(np.ceil(given_N * num_steps).astype(np.int64) - 1, 0, num_steps - 1)
    counts_S = np.bincount(steps_N, minlength=num_steps)
    some_S = np.where(counts_S > 0, counts_S, np.nan)
    return CalibrationBins(
        counts_S,
        np.bincount(steps_N, weights=given_N, minlength=num_steps) / some_S,
        np.bincount(steps_N, weights=is_right_N, minlength=num_steps) / some_S,
    )


def expected_calibration_error(found: CalibrationBins) -> float:
    """The mean absolute difference of confidence and accuracy, over rows: 0 is best, 1 is worst."""
    gaps_S = np.abs(found.confidence - found.accuracy)
    return float(np.nansum(gaps_S * found.counts) / max(found.counts.sum(), 1))
