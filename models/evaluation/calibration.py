"""Calibration: whether confidence matches accuracy.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2.

Shapes: N rows, K classes, S bins of confidence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.serving.predictions import decide_labels

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


def calibration_bins(truth_N: np.ndarray, shares_NK: np.ndarray, num_bins: int = NUM_BINS) -> CalibrationBins:
    """Bins rows by the probability of their predicted class, the most probable one."""
    confidence_N = shares_NK.max(axis=1)
    is_right_N = shares_NK.argmax(axis=1) == truth_N
    # Bins include the upper edge, not the lower one.
    bins_N = np.clip(np.ceil(confidence_N * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts_S = np.bincount(bins_N, minlength=num_bins)
    counts_or_nan_S = np.where(counts_S > 0, counts_S, np.nan)
    return CalibrationBins(
        counts_S,
        np.bincount(bins_N, weights=confidence_N, minlength=num_bins) / counts_or_nan_S,
        np.bincount(bins_N, weights=is_right_N, minlength=num_bins) / counts_or_nan_S,
    )


def as_decisions(truth_NK: np.ndarray, probabilities_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sets of labels as one decision between no and yes for each row and label: truth (N*K,), shares (N*K, 2)."""
    shares = probabilities_NK.reshape(-1)
    return truth_NK.reshape(-1).astype(np.int64), np.stack([1 - shares, shares], axis=1)


def predicted_decisions(truth_NK: np.ndarray, probabilities_NK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The decisions of `as_decisions` in which a label is predicted; most others are easy, and would hide these."""
    truth, shares = as_decisions(truth_NK, probabilities_NK)
    is_predicted = decide_labels(probabilities_NK).reshape(-1) > 0
    return truth[is_predicted], shares[is_predicted]


def expected_calibration_error(bins: CalibrationBins) -> float:
    """The mean absolute difference of confidence and accuracy, over rows: 0 is best, 1 is worst."""
    gaps_S = np.abs(bins.confidence - bins.accuracy)
    return float(np.nansum(gaps_S * bins.counts) / max(bins.counts.sum(), 1))
