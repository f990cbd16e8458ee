"""Drift tests: the size of a drift, its significance, and the rate of false alarms."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bloomery.data_contracts.odcs.distributions import (
    Bins,
    Histogram,
    ReferenceColumn,
    count_into_bins,
    reference_column,
)
from bloomery.models.evaluation.drift_tests import (
    chi_square,
    holm_correction,
    kolmogorov_smirnov,
    measure_divergence,
    poststratified_accuracy,
    psi_noise,
)

COUNTS = st.lists(st.integers(0, 200), min_size=2, max_size=8).filter(sum)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def reference(values: np.ndarray, num_cells: int = 100) -> ReferenceColumn:
    edges = sorted({float(edge) for edge in np.quantile(values, np.arange(1, num_cells) / num_cells)})
    return reference_column(count_into_bins(Bins(edges=tuple(edges)), pa.array(values)))


def count_values(expected: ReferenceColumn, values: pa.Array | np.ndarray) -> Histogram:
    return count_into_bins(Bins(edges=expected.edges, values=expected.values), pa.array(values))


def test_chi_square_equals_scipy_if_no_cell_is_small() -> None:
    before, after = np.array([120.0, 300, 80]), np.array([60.0, 190, 90])
    result = chi_square(before, after)
    expected = stats.chi2_contingency(np.stack([before, after]), correction=False)
    assert result == pytest.approx((expected.statistic, expected.pvalue))


def test_small_cells_are_merged() -> None:
    before, after = np.array([500.0, 400, 2, 1, 3]), np.array([480.0, 410, 0, 4, 1])
    merged = np.array([[500.0, 400, 6], [480.0, 410, 5]])
    expected = stats.chi2_contingency(merged, correction=False)
    assert chi_square(before, after) == pytest.approx((expected.statistic, expected.pvalue))
    # Together they still have too few rows, so they are merged with the smallest other cell.
    expected = stats.chi2_contingency(np.array([[500.0, 401], [480.0, 410]]), correction=False)
    assert chi_square(np.array([500.0, 400, 1]), np.array([480.0, 410, 0])) == pytest.approx(
        (expected.statistic, expected.pvalue)
    )


@pytest.mark.parametrize("counts", [([5.0, 0], [9.0, 0]), ([0.0, 0], [3.0, 1]), ([1.0, 1], [1.0, 0])])
def test_indistinguishable_samples_are_not_significant(counts: tuple[list[float], list[float]]) -> None:
    assert chi_square(*map(np.array, counts)) == (0.0, 1.0)


def test_the_kolmogorov_statistic_is_exact_if_each_value_has_a_cell() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 30, 400), rng.integers(0, 33, 300)
    counts = [np.bincount(values, minlength=33).astype(float) for values in (before, after)]
    result, expected = kolmogorov_smirnov(*counts), stats.ks_2samp(before, after)
    assert result.statistic == pytest.approx(expected.statistic)
    assert result.p_value == pytest.approx(expected.pvalue, rel=0.15)


@settings(deadline=None)
@given(before=COUNTS, after=COUNTS, data=st.data())
def test_tests_are_symmetric_and_coarser_cells_never_increase_the_statistic(before, after, data):
    size = min(len(before), len(after))
    first, second = (np.array(counts[:size], float) for counts in (before, after))
    for test in (chi_square, kolmogorov_smirnov):
        result = test(first, second)
        assert result == pytest.approx(test(second, first))
        assert 0 <= result.p_value <= 1
        assert test(first, first).p_value == 1.0
    num_merged = data.draw(st.integers(1, size - 1))
    merged = [np.concatenate([[counts[:num_merged].sum()], counts[num_merged:]]) for counts in (first, second)]
    assert kolmogorov_smirnov(*merged).statistic <= kolmogorov_smirnov(first, second).statistic + 1e-12


@given(P_VALUES)
def test_holm_keeps_the_order_and_is_at_most_as_strict_as_bonferroni(p_values: list[float]) -> None:
    corrected = holm_correction(p_values)
    for position, p_value in enumerate(p_values):
        assert p_value <= corrected[position] <= min(1.0, len(p_values) * p_value)
        assert all(
            corrected[position] <= corrected[larger_position]
            for larger_position, larger in enumerate(p_values)
            if p_value < larger
        )


def test_holm_of_known_p_values() -> None:
    assert holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_psi_of_one_distribution_equals_psi_noise_on_average() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=4_000)
    expected = reference(values)
    divergences = [
        measure_divergence(expected, 4_000, count_values(expected, rng.normal(size=1_000))) for _ in range(200)
    ]
    assert divergences[0].noise_psi == psi_noise(10, 4_000, 1_000) == pytest.approx(9 * 0.00125)
    assert np.mean([divergence.psi for divergence in divergences]) == pytest.approx(divergences[0].noise_psi, rel=0.15)


@pytest.mark.parametrize("num_rows", [60, 500, 5_000])
def test_the_false_alarm_rate_is_at_most_the_significance_level(num_rows: int) -> None:
    """500 data sets of 4 columns without drift: after the correction, at most 5% of the data sets raise an alarm."""
    rng = np.random.default_rng(num_rows)
    shares = np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    num_alarms = num_uncorrected_alarms = 0
    for _ in range(500):
        p_values = []
        for draw in (rng.normal, rng.exponential):
            expected = reference(draw(size=2_000))
            p_values.append(measure_divergence(expected, 2_000, count_values(expected, draw(size=num_rows))).p_value)
        for _ in range(2):
            before = rng.multinomial(2_000, shares).astype(float)
            p_values.append(chi_square(before, rng.multinomial(num_rows, shares).astype(float)).p_value)
        num_uncorrected_alarms += sum(p_value < 0.05 for p_value in p_values)
        num_alarms += min(holm_correction(p_values)) < 0.05
    assert num_uncorrected_alarms / 2_000 < 0.06
    assert num_alarms / 500 < 0.07  # 0.05 and two standard deviations


def test_a_shift_is_detected_and_its_size_is_independent_of_the_number_of_rows() -> None:
    rng = np.random.default_rng(2)
    expected = reference(rng.normal(size=5_000))
    small, large = (
        measure_divergence(expected, 5_000, count_values(expected, rng.normal(0.8, 1, size))) for size in (300, 20_000)
    )
    assert small.p_value < 1e-6
    assert large.p_value < small.p_value
    assert small.psi == pytest.approx(large.psi, rel=0.3)
    assert large.psi > 0.5


def test_a_tiny_shift_in_many_rows_is_significant_but_small() -> None:
    rng = np.random.default_rng(3)
    expected = reference(rng.normal(size=200_000))
    divergence = measure_divergence(expected, 200_000, count_values(expected, rng.normal(0.03, 1, 200_000)))
    assert divergence.p_value < 1e-6
    assert divergence.psi < 0.01


def test_missing_numbers_count_as_drift() -> None:
    rng = np.random.default_rng(4)
    expected = reference(rng.normal(size=2_000))
    values = pa.array([None if position < 300 else value for position, value in enumerate(rng.normal(size=2_000))])
    divergence = measure_divergence(expected, 2_000, count_values(expected, values))
    assert divergence.statistic < 0.05  # the present values have not drifted
    assert divergence.p_value < 1e-6
    assert divergence.psi > 0.2


def test_references_with_few_or_constant_values_can_be_compared() -> None:
    constant = ReferenceColumn(edges=(1.0,), shares=(0.0, 1.0))
    assert measure_divergence(constant, 100, Histogram(edges=(1.0,), counts=(0, 50))).p_value == 1.0
    divergence = measure_divergence(constant, 100, Histogram(edges=(1.0,), counts=(50, 0)))
    assert divergence.p_value < 1e-6
    assert divergence.psi > 1


def test_unequal_labelling_rates_do_not_bias_the_accuracy() -> None:
    predictions = np.array(["a"] * 900 + ["b"] * 100, dtype=object)
    labelled_predictions = np.array(["a"] * 50 + ["b"] * 50, dtype=object)
    is_right = np.array([True] * 45 + [False] * 5 + [True] * 25 + [False] * 25)
    accuracy, covered = poststratified_accuracy(predictions, labelled_predictions, is_right)
    assert accuracy.value == pytest.approx(0.9 * 0.9 + 0.1 * 0.5)
    assert accuracy.low < accuracy.value < accuracy.high
    assert covered == 1.0
    partial, covered = poststratified_accuracy(predictions, labelled_predictions[:50], is_right[:50])
    assert (partial.value, covered) == (pytest.approx(0.9), pytest.approx(0.9))
    # Three correct rows are not enough for certainty.
    assert poststratified_accuracy(predictions, labelled_predictions[:3], is_right[:3])[0].low < 0.8
