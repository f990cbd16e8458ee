"""An alarm needs a change that is large and that chance does not make, and chance seldom passes for one."""

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
CHANCES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def reference(values: np.ndarray, num_cells: int = 100) -> ReferenceColumn:
    edges = sorted({float(edge) for edge in np.quantile(values, np.arange(1, num_cells) / num_cells)})
    return reference_column(count_into_bins(Bins(edges=tuple(edges)), pa.array(values)))


def counted(expected: ReferenceColumn, values: pa.Array | np.ndarray) -> Histogram:
    return count_into_bins(Bins(edges=expected.edges, values=expected.values), pa.array(values))


def test_chi_square_equals_scipy_if_no_cell_is_small() -> None:
    before, after = np.array([120.0, 300, 80]), np.array([60.0, 190, 90])
    found = chi_square(before, after)
    theirs = stats.chi2_contingency(np.stack([before, after]), correction=False)
    assert found == pytest.approx((theirs.statistic, theirs.pvalue))


def test_small_cells_are_merged() -> None:
    before, after = np.array([500.0, 400, 2, 1, 3]), np.array([480.0, 410, 0, 4, 1])
    together = np.array([[500.0, 400, 6], [480.0, 410, 5]])
    theirs = stats.chi2_contingency(together, correction=False)
    assert chi_square(before, after) == pytest.approx((theirs.statistic, theirs.pvalue))
    # Too few even together: they go with the smallest of the others.
    theirs = stats.chi2_contingency(np.array([[500.0, 401], [480.0, 410]]), correction=False)
    assert chi_square(np.array([500.0, 400, 1]), np.array([480.0, 410, 0])) == pytest.approx(
        (theirs.statistic, theirs.pvalue)
    )


@pytest.mark.parametrize("counts", [([5.0, 0], [9.0, 0]), ([0.0, 0], [3.0, 1]), ([1.0, 1], [1.0, 0])])
def test_indistinguishable_samples_are_not_significant(counts: tuple[list[float], list[float]]) -> None:
    assert chi_square(*map(np.array, counts)) == (0.0, 1.0)


def test_the_kolmogorov_statistic_is_exact_if_each_value_has_a_cell() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 30, 400), rng.integers(0, 33, 300)
    counts = [np.bincount(values, minlength=33).astype(float) for values in (before, after)]
    found, theirs = kolmogorov_smirnov(*counts), stats.ks_2samp(before, after)
    assert found.statistic == pytest.approx(theirs.statistic)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=0.15)


@settings(deadline=None)
@given(before=COUNTS, after=COUNTS, data=st.data())
def test_tests_are_symmetric_and_coarser_cells_never_increase_the_statistic(before, after, data):
    size = min(len(before), len(after))
    one, other = (np.array(counts[:size], float) for counts in (before, after))
    for test in (chi_square, kolmogorov_smirnov):
        found = test(one, other)
        assert found == pytest.approx(test(other, one))
        assert 0 <= found.p_value <= 1
        assert test(one, one).p_value == 1.0
    cut = data.draw(st.integers(1, size - 1))
    merged = [np.concatenate([[counts[:cut].sum()], counts[cut:]]) for counts in (one, other)]
    assert kolmogorov_smirnov(*merged).statistic <= kolmogorov_smirnov(one, other).statistic + 1e-12


@given(CHANCES)
def test_holm_keeps_the_order_and_is_at_most_as_strict_as_bonferroni(chances: list[float]) -> None:
    corrected = holm_correction(chances)
    for place, one in enumerate(chances):
        assert one <= corrected[place] <= min(1.0, len(chances) * one)
        assert all(corrected[place] <= corrected[other] for other, two in enumerate(chances) if one < two)


def test_holm_of_known_p_values() -> None:
    assert holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_psi_of_one_distribution_equals_psi_noise_on_average() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=4_000)
    expected = reference(values)
    found = [measure_divergence(expected, 4_000, counted(expected, rng.normal(size=1_000))) for _ in range(200)]
    assert found[0].noise_psi == psi_noise(10, 4_000, 1_000) == pytest.approx(9 * 0.00125)
    assert np.mean([one.psi for one in found]) == pytest.approx(found[0].noise_psi, rel=0.15)


@pytest.mark.parametrize("num_rows", [60, 500, 5_000])
def test_the_false_alarm_rate_is_at_most_the_significance_level(num_rows: int) -> None:
    """500 times 4 columns without drift, two of them of numbers: at 5%, some of them corrected in at most 5%."""
    rng = np.random.default_rng(num_rows)
    shares = np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    num_alarms = num_alarmed_alone = 0
    for _ in range(500):
        chances = []
        for draw in (rng.normal, rng.exponential):
            expected = reference(draw(size=2_000))
            chances.append(measure_divergence(expected, 2_000, counted(expected, draw(size=num_rows))).p_value)
        for _ in range(2):
            before = rng.multinomial(2_000, shares).astype(float)
            chances.append(chi_square(before, rng.multinomial(num_rows, shares).astype(float)).p_value)
        num_alarmed_alone += sum(one < 0.05 for one in chances)
        num_alarms += min(holm_correction(chances)) < 0.05
    assert num_alarmed_alone / 2_000 < 0.06
    assert num_alarms / 500 < 0.07  # 0.05 and two standard deviations


def test_a_shift_is_detected_and_its_size_is_independent_of_the_number_of_rows() -> None:
    rng = np.random.default_rng(2)
    expected = reference(rng.normal(size=5_000))
    small, large = (
        measure_divergence(expected, 5_000, counted(expected, rng.normal(0.8, 1, size))) for size in (300, 20_000)
    )
    assert small.p_value < 1e-6
    assert large.p_value < small.p_value
    assert small.psi == pytest.approx(large.psi, rel=0.3)
    assert large.psi > 0.5


def test_a_tiny_shift_in_many_rows_is_significant_but_small() -> None:
    rng = np.random.default_rng(3)
    expected = reference(rng.normal(size=200_000))
    found = measure_divergence(expected, 200_000, counted(expected, rng.normal(0.03, 1, 200_000)))
    assert found.p_value < 1e-6
    assert found.psi < 0.01


def test_missing_numbers_count_as_drift() -> None:
    rng = np.random.default_rng(4)
    expected = reference(rng.normal(size=2_000))
    values = pa.array([None if place < 300 else value for place, value in enumerate(rng.normal(size=2_000))])
    found = measure_divergence(expected, 2_000, counted(expected, values))
    assert found.statistic < 0.05  # those that are there have not moved
    assert found.p_value < 1e-6
    assert found.psi > 0.2


def test_references_with_few_or_constant_values_can_be_compared() -> None:
    constant = ReferenceColumn(edges=(1.0,), shares=(0.0, 1.0))
    assert measure_divergence(constant, 100, Histogram(edges=(1.0,), counts=(0, 50))).p_value == 1.0
    moved = measure_divergence(constant, 100, Histogram(edges=(1.0,), counts=(50, 0)))
    assert moved.p_value < 1e-6
    assert moved.psi > 1


def test_unequal_labelling_rates_do_not_bias_the_accuracy() -> None:
    answers = np.array(["a"] * 900 + ["b"] * 100, dtype=object)
    labelled = np.array(["a"] * 50 + ["b"] * 50, dtype=object)
    right = np.array([True] * 45 + [False] * 5 + [True] * 25 + [False] * 25)
    found, covered = poststratified_accuracy(answers, labelled, right)
    assert found.value == pytest.approx(0.9 * 0.9 + 0.1 * 0.5)
    assert found.low < found.value < found.high
    assert covered == 1.0
    alone, covered = poststratified_accuracy(answers, labelled[:50], right[:50])
    assert (alone.value, covered) == (pytest.approx(0.9), pytest.approx(0.9))
    assert poststratified_accuracy(answers, labelled[:3], right[:3])[0].low < 0.8  # three right ones are no certainty
