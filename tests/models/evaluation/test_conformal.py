"""Split conformal intervals: their rank, and their coverage of new rows."""

import numpy as np
import pytest

from bloomery.models.evaluation.conformal import conformal_half_width, measure_interval


def test_the_half_width_is_the_residual_of_the_corrected_rank():
    residuals = np.array([-9, 1, 2, -3, 4, 5, -6, 7, 8])
    assert conformal_half_width(residuals, 0.9) == 9  # rank ⌈10 x 0.9⌉ = 9
    assert conformal_half_width(residuals, 0.5) == 5
    assert conformal_half_width(residuals[:8], 0.9) is None
    assert measure_interval(residuals[:8], residuals) is None


@pytest.mark.parametrize("num_rows", [20, 200])
def test_intervals_cover_new_rows_as_often_as_promised(num_rows):
    random = np.random.default_rng(0)
    coverages = []
    for _ in range(400):
        errors = random.standard_t(3, num_rows + 200)  # heavy tails: no normal distribution is assumed
        interval = measure_interval(errors[:num_rows], errors[num_rows:])
        assert interval is not None
        coverages.append(interval.coverage.value)
    assert 0.895 <= np.mean(coverages) <= 0.9 + 1 / (num_rows + 1) + 0.005


def test_the_interval_states_what_was_measured():
    interval = measure_interval(np.arange(1.0, 20.0), np.array([0.0, 5.0, 18.0, 18.5]))
    assert interval is not None
    assert (interval.level, interval.half_width, interval.num_rows) == (0.9, 18.0, 19)
    assert interval.coverage.value == 0.75
    assert interval.coverage.low < 0.75 < interval.coverage.high
