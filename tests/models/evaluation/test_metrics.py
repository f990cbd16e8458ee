"""Metrics with confidence intervals, paired differences, and confusion matrices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, multinomial

from bloomery.data_contracts.records.records import Interval
from bloomery.models.evaluation.block_bootstrap import block_length
from bloomery.models.evaluation.metrics import (
    Z_95,
    accuracy,
    accuracy_drop,
    class_metrics,
    confusion_matrix,
    log_loss,
    mean_absolute_error,
    r_squared,
    rmse,
    rmse_rise,
    roc_auc,
)
from tests.examples import examples


def correct_rows(num_right: int, num_rows: int) -> np.ndarray:
    return np.arange(num_rows) < num_right


def pairs(num_both: int, num_lost: int, num_gained: int, num_neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows two models predict correctly: `num_lost` only the first, `num_gained` only the second."""
    counts = [num_both, num_lost, num_gained, num_neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


COUNTS = st.tuples(*[st.integers(0, 30)] * 4).filter(any)


@pytest.mark.parametrize(
    ("num_right", "num_rows", "low", "high"),
    # Source: Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_published_values(num_right, num_rows, low, high):
    interval = accuracy(correct_rows(num_right, num_rows))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert interval.value == num_right / num_rows


@settings(deadline=None, max_examples=examples(200))
@given(num_rows=st.integers(1, 500), data=st.data())
def test_wilson_interval_contains_the_proportion_and_is_within_zero_and_one(num_rows, data):
    interval = accuracy(correct_rows(data.draw(st.integers(0, num_rows)), num_rows))
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1
    assert interval.low < interval.high


def test_wilson_interval_contains_proportions_of_zero_and_one():
    failures = [
        (num_right, num_rows)
        for num_rows in range(1, 60)
        for num_right in (0, num_rows)
        if not (interval := accuracy(correct_rows(num_right, num_rows))).low <= interval.value <= interval.high
    ]
    assert failures == []


@pytest.mark.parametrize("num_rows", [20, 100])
def test_wilson_interval_covers_the_true_proportion_in_95_percent(num_rows):
    intervals = [accuracy(correct_rows(num_right, num_rows)) for num_right in range(num_rows + 1)]
    proportions = np.linspace(0.05, 0.95, 181)
    coverages = [
        sum(
            binom.pmf(k, num_rows, proportion)
            for k, interval in enumerate(intervals)
            if interval.low <= proportion <= interval.high
        )
        for proportion in proportions
    ]
    assert np.mean(coverages) == pytest.approx(0.95, abs=0.01)


@settings(deadline=None, max_examples=examples(100))
@given(rows=st.lists(st.booleans(), min_size=1, max_size=50), seed=st.integers(0, 9))
def test_accuracy_is_independent_of_the_order_of_rows(rows, seed):
    correct = np.array(rows)
    assert accuracy(np.random.default_rng(seed).permutation(correct)) == accuracy(correct)


def test_tango_interval_equals_published_values():
    # Source: Fagerland, Lydersen & Laake 2014, "Recommended tests and confidence intervals for paired binomial
    # proportions": airway reactivity before and after transplantation.
    interval = accuracy_drop(*pairs(num_both=1, num_lost=1, num_gained=7, num_neither=12))
    assert (interval.value, interval.low, interval.high) == pytest.approx((-0.286, -0.517, -0.026), abs=5e-4)


@settings(deadline=None, max_examples=examples(150))
@given(COUNTS)
def test_tango_limits_are_where_the_score_leaves_the_band(counts):
    before, after = pairs(*counts)
    interval = accuracy_drop(before, after)
    _, num_lost, num_gained, _ = counts
    for limit in (interval.low, interval.high):
        if abs(limit) < 1 - 1e-9:
            assert abs(tango_score(num_lost, num_gained, sum(counts), limit)) == pytest.approx(Z_95, rel=1e-3)


def tango_score(num_lost: int, num_gained: int, num_rows: int, drop: float) -> float:
    """The score of a drop. The most likely share of gains comes from a search instead of a formula."""

    def negative_log_likelihood(share: float) -> float:
        shares = (share + drop, share, 1 - 2 * share - drop)
        outcomes = (num_lost, num_gained, num_rows - num_lost - num_gained)
        return -sum(
            count * math.log(max(probability, 1e-300))
            for probability, count in zip(shares, outcomes, strict=True)
            if count
        )

    lowest, highest = max(0.0, -drop), (1 - drop) / 2
    share = minimize_scalar(
        negative_log_likelihood, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-13}
    ).x
    return (num_lost - num_gained - num_rows * drop) / math.sqrt(num_rows * (2 * share + drop * (1 - drop)))


@settings(deadline=None, max_examples=examples(200))
@given(COUNTS)
def test_tango_interval_contains_the_drop(counts):
    before, after = pairs(*counts)
    interval = accuracy_drop(before, after)
    assert interval.value == pytest.approx(before.mean() - after.mean())
    assert -1 <= interval.low <= interval.value <= interval.high <= 1


@settings(deadline=None, max_examples=examples(200))
@given(COUNTS)
def test_swapping_the_models_negates_the_interval(counts):
    before, after = pairs(*counts)
    drop, reverse_drop = accuracy_drop(before, after), accuracy_drop(after, before)
    assert (reverse_drop.value, reverse_drop.low, reverse_drop.high) == pytest.approx(
        (-drop.value, -drop.high, -drop.low), abs=1e-9
    )


@settings(deadline=None, max_examples=examples(100))
@given(num_rows=st.integers(1, 5000), num_right=st.integers(0, 5000))
def test_the_interval_of_identical_predictions_depends_on_the_number_of_rows(num_rows, num_right):
    correct = correct_rows(num_right, num_rows)
    interval = accuracy_drop(correct, correct.copy())
    width = Z_95**2 / (num_rows + Z_95**2)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0, -width, width), abs=1e-9)


@settings(deadline=None, max_examples=examples(50))
@given(COUNTS, st.integers(0, 9))
def test_the_accuracy_drop_is_independent_of_the_order_of_rows(counts, seed):
    before, after = pairs(*counts)
    order = np.random.default_rng(seed).permutation(len(before))
    assert accuracy_drop(before[order], after[order]) == accuracy_drop(before, after)


@pytest.mark.parametrize("shares", [(0.02, 0.02), (0.05, 0.02), (0.1, 0.05), (0.2, 0.1), (0.3, 0.1)], ids=str)
@pytest.mark.parametrize("num_rows", [20, 40])
def test_tango_interval_covers_the_true_drop_in_at_least_93_percent(num_rows, shares):
    outcomes = [
        (num_lost, num_gained) for num_lost in range(num_rows + 1) for num_gained in range(num_rows + 1 - num_lost)
    ]
    probable_intervals = [
        (probability, accuracy_drop(*pairs(0, num_lost, num_gained, num_rows - num_lost - num_gained)))
        for num_lost, num_gained in outcomes
        if (
            probability := multinomial.pmf(
                (num_lost, num_gained, num_rows - num_lost - num_gained), num_rows, (*shares, 1 - sum(shares))
            )
        )
        > 1e-7
    ]
    drop = shares[0] - shares[1]
    assert sum(probability for probability, _ in probable_intervals) > 0.999
    assert (
        sum(probability for probability, interval in probable_intervals if interval.low <= drop <= interval.high)
        >= 0.93
    )


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60))
def test_the_confusion_matrix_counts_pairs(rows):
    truth, predictions = (np.array([row[side] for row in rows], dtype=np.int64) for side in (0, 1))
    counts = confusion_matrix(truth, predictions, 5)
    assert (counts.shape, counts.dtype) == ((5, 5), np.int64)
    assert all(
        counts[label, prediction] == rows.count((label, prediction)) for label in range(5) for prediction in range(5)
    )


@settings(deadline=None, max_examples=examples(60))
@given(st.integers(2, 60), st.integers(0, 999), st.floats(0.01, 1e6), st.floats(-1e6, 1e6))
def test_rmse_scales_with_the_label_and_ignores_its_offset(num_rows, seed, unit, offset):
    truth, predictions = np.random.default_rng(seed).normal(size=(2, num_rows))
    original, scaled = rmse(truth, predictions), rmse(truth * unit + offset, predictions * unit + offset)
    assert original.value == pytest.approx(np.sqrt(np.mean((truth - predictions) ** 2)))
    assert original.low <= original.value <= original.high
    tolerance = {"rel": 1e-6, "abs": 1e-9 * abs(offset)}
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(
        (original.value * unit, original.low * unit, original.high * unit), **tolerance
    )


def test_intervals_of_perfect_predictions_and_single_rows_have_no_width():
    truth = np.arange(20.0)
    assert rmse(truth, truth) == Interval(value=0, low=0, high=0)
    assert rmse(truth[:1], truth[:1] + 2) == Interval(value=2, low=2, high=2)
    assert rmse_rise(truth, truth + 1, truth - 1) == Interval(value=0, low=0, high=0)
    assert rmse_rise(truth, truth, truth) == Interval(value=0, low=0, high=0)
    assert math.isfinite(rmse_rise(truth, truth, truth + 1).high)


@pytest.mark.parametrize("num_rows", [60, 300])
def test_rmse_interval_covers_the_true_value_in_at_least_90_percent(num_rows):
    random = np.random.default_rng(0)
    intervals = [rmse(np.zeros(num_rows), random.normal(size=num_rows)) for _ in range(200)]
    assert np.mean([interval.low <= 1 <= interval.high for interval in intervals]) >= 0.9


def autocorrelated_errors(random: np.random.Generator, num_rows: int, correlation: float) -> np.ndarray:
    """Errors with deviation 1 and this correlation between neighbours."""
    innovations = random.normal(size=num_rows + 100) * math.sqrt(1 - correlation**2)
    errors = np.array(
        list(itertools.accumulate(innovations, lambda before, innovation: correlation * before + innovation))
    )
    return errors[100:]


def test_autocorrelated_errors_widen_the_interval():
    random = np.random.default_rng(0)
    series = [autocorrelated_errors(random, 1000, 0.8) for _ in range(150)]
    intervals = [rmse(np.zeros(1000), errors) for errors in series]
    assert np.mean([interval.low <= 1 <= interval.high for interval in intervals]) >= 0.87
    shuffled = [rmse(np.zeros(1000), random.permutation(errors)) for errors in series]
    assert np.mean([interval.low <= 1 <= interval.high for interval in shuffled]) < 0.8


def test_rmse_rise_interval_covers_the_true_value_in_at_least_90_percent():
    random = np.random.default_rng(0)
    rise, is_covered = 1.02 * math.sqrt(1.04) - 1, []
    for _ in range(150):
        before, noise = random.normal(size=(2, 200))
        interval = rmse_rise(np.zeros(200), before, 1.02 * (before + 0.2 * noise))
        is_covered.append(interval.low <= rise <= interval.high)
    assert np.mean(is_covered) >= 0.9


def test_the_paired_rise_has_a_narrower_interval_than_two_errors():
    before, noise = np.random.default_rng(0).normal(size=(2, 500))
    truth, after = np.zeros(500), before + 0.05 * noise
    rise, first, second = rmse_rise(truth, before, after), rmse(truth, before), rmse(truth, after)
    assert rise.high - rise.low < 0.3 * (second.high - first.low) / first.value
    assert (first.low, first.high) == (rmse(truth, before).low, rmse(truth, before).high)


def test_block_length_grows_with_autocorrelation():
    random = np.random.default_rng(0)
    lengths = [block_length(autocorrelated_errors(random, 2000, correlation) ** 2) for correlation in (0.0, 0.7, 0.95)]
    assert lengths[0] <= 3 < lengths[1] < lengths[2]
    assert block_length(np.ones(100)) == block_length(np.arange(5.0)) == 1


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40))
def test_roc_auc_is_the_fraction_of_correctly_ordered_pairs(rows):
    positive, scores = (np.array([row[side] for row in rows]) for side in (0, 1))
    pair_scores = [(a > b) + (a == b) / 2 for a in scores[positive == 1] for b in scores[positive == 0]]
    expected = pytest.approx(np.mean(pair_scores)) if pair_scores else None
    assert roc_auc(positive.astype(bool), scores) == expected


def test_log_loss_mean_absolute_error_and_r_squared_are_correct():
    shares = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    assert log_loss(np.array([0, 1, 0]), shares) == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 3)
    truth, predictions = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0])
    assert mean_absolute_error(truth, predictions) == 1
    assert (r_squared(truth, truth), r_squared(truth, np.full(3, 2.0))) == (1, 0)
    assert r_squared(np.ones(3), predictions) == 0


def test_class_metrics_are_recall_and_precision_or_none_without_rows():
    counts = confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 4)
    assert class_metrics(counts) == [(2, 0.5, 1.0), (1, 1.0, 0.5), (0, None, None), (0, None, None)]
