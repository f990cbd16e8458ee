"""Calibration bins and the expected calibration error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.models.evaluation.calibration import calibration_bins, expected_calibration_error


def probabilities_of(confidence_N: np.ndarray) -> np.ndarray:
    return np.stack([confidence_N, 1 - confidence_N], axis=1)


def test_calibrated_predictions_have_no_error():
    truth_N = np.repeat([0, 1], [75, 25])
    bins = calibration_bins(truth_N, probabilities_of(np.full(100, 0.75)))
    assert bins.counts.sum() == bins.counts.max() == 100
    assert expected_calibration_error(bins) == pytest.approx(0)


def test_the_error_is_the_difference_of_confidence_and_accuracy():
    bins = calibration_bins(np.repeat([0, 1], 50), probabilities_of(np.full(100, 0.9)))
    assert expected_calibration_error(bins) == pytest.approx(0.4)


def test_probability_one_is_in_the_last_bin_and_empty_bins_are_nan():
    bins = calibration_bins(np.array([0]), probabilities_of(np.array([1.0])), num_bins=4)
    assert bins.counts.tolist() == [0, 0, 0, 1]
    assert np.isnan(bins.accuracy[:3]).all()
    assert bins.accuracy[3] == bins.confidence[3] == 1


@given(st.lists(st.tuples(st.floats(0.5, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_bins_contain_all_rows_and_the_error_is_between_zero_and_one(rows):
    confidence_N, truth_N = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    bins = calibration_bins(truth_N, probabilities_of(confidence_N))
    assert bins.counts.sum() == len(rows)
    assert 0 <= expected_calibration_error(bins) <= 1
    is_right = probabilities_of(confidence_N).argmax(axis=1) == truth_N
    assert np.nansum(bins.accuracy * bins.counts) == pytest.approx(is_right.sum())
