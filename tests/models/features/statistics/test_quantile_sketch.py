"""Exact moments, and quantiles within a thousandth, independent of the order of the values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.models.features.statistics.moments import UNIT_BITS, Moments, byte_moments, repeated_moments
from bloomery.models.features.statistics.quantile_sketch import (
    build_sketch,
    clipped_moments,
    empty_sketch,
    merge_sketches,
    parse_sketch,
    quantiles,
    sketch_moments,
)
from tests.examples import examples

FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.lists(FINITE | st.floats(-100, 100) | st.integers(-5, 5).map(float), min_size=1, max_size=60)


def exact(values: list[float]) -> Moments:
    units = [int(Fraction(value) * 2**UNIT_BITS) for value in values]
    return Moments(count=len(units), total=sum(units), total_of_squares=sum(unit * unit for unit in units))


@settings(deadline=None, max_examples=examples(200))
@given(values=VALUES)
def test_moments_are_exact_for_all_finite_values(values):
    assert sketch_moments(build_sketch(np.array(values))) == exact(values)


@settings(deadline=None, max_examples=examples(100))
@given(data=st.data(), values=VALUES)
def test_merged_sketches_equal_the_sketch_of_all_values(data, values):
    expected = build_sketch(np.array(values))
    shuffled = np.array(data.draw(st.permutations(values)))
    boundaries = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    assert merge_sketches([build_sketch(part) for part in np.split(shuffled, boundaries)]) == expected
    assert parse_sketch(expected.to_text()) == expected


@settings(deadline=None, max_examples=examples(100))
@given(values=VALUES, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_moments_after_clipping_at_quantiles_are_exact(values, shares):
    sketch = build_sketch(np.array(values))
    low, high = quantiles(sketch, shares)
    clipped = np.clip(np.array(values) + 0.0, low, high)
    assert clipped_moments(sketch, low, high) == exact(clipped.tolist())
    assert clipped_moments(sketch, None, high) == exact(np.minimum(values, high).tolist())
    assert clipped_moments(sketch, low, None) == exact(np.maximum(values, low).tolist())


@settings(deadline=None, max_examples=examples(200))
@given(values=VALUES, share=st.floats(0, 1))
def test_a_quantile_is_an_observed_value_within_a_thousandth(values, share):
    (quantile,) = quantiles(build_sketch(np.array(values)), [share])
    expected = float(np.sort(values)[max(int(np.ceil(share * len(values))), 1) - 1])
    assert quantile in values
    assert quantile <= expected
    assert (
        abs(Fraction(expected) - Fraction(quantile))
        <= Fraction(max(abs(expected), abs(quantile))) / 1000 + Fraction(2) ** -1022
    )


def test_quantiles_of_few_different_values_are_exact():
    values = np.random.default_rng(0).integers(-500, 500, 10_000).astype(float)
    shares = np.linspace(0, 1, 101)
    assert quantiles(build_sketch(values), shares) == np.quantile(values, shares, method="inverted_cdf").tolist()


@pytest.mark.parametrize("draw", ["normal", "lognormal", "standard_cauchy", "random"])
def test_quantiles_agree_with_numpy(draw):
    values = getattr(np.random.default_rng(0), draw)(size=300_000)
    shares = np.linspace(0.001, 0.999, 99)
    expected = np.quantile(values, shares, method="inverted_cdf")
    sketched = np.array(quantiles(build_sketch(values), shares))
    assert np.max(np.abs(sketched - expected) / np.abs(expected)) <= 2**-10


def test_many_equal_values_do_not_overflow():
    value = float(np.nextafter(2.0, 1.0))
    sketch = build_sketch(np.full(300_000, value))
    for _ in range(5):
        sketch = merge_sketches([sketch] * 16)
    assert sketch_moments(sketch) == repeated_moments(value, 300_000 * 16**5)


@pytest.mark.parametrize("values", [[0.1] * 7, [1e200, 0.0], [1e-310, 0.0], [1e308, -1e308], [1e9, 1e9 + 20], [3.0]])
def test_mean_and_deviation_are_rounded_once(values):
    sums, count = sketch_moments(build_sketch(np.array(values))), len(values)
    mean = sum(map(Fraction, values)) / count
    variance = sum((Fraction(value) - mean) ** 2 for value in values) / count
    assert sums.mean() == float(mean)
    if variance:
        relative = Fraction(sums.deviation()) ** 2 / variance - 1
        assert abs(relative) <= Fraction(1, 10**12)


def test_constant_values_have_a_deviation_of_one():
    assert sketch_moments(build_sketch(np.full(9, 0.1))).deviation() == 1.0


def test_byte_moments_equal_float_moments():
    values = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
    assert byte_moments(values) == sketch_moments(build_sketch(values.astype(float)))


def test_empty_sketches_are_neutral():
    sketch = build_sketch(np.array([1.0, 2.0]))
    assert merge_sketches([empty_sketch(), sketch, empty_sketch()]) == sketch
    assert sketch_moments(empty_sketch()) == Moments()
    assert (Moments().mean(), Moments().deviation()) == (0.0, 1.0)


def test_moments_round_trip_through_json():
    sums = exact([1e308, -5e-324])
    assert Moments.model_validate_json(sums.model_dump_json()) == sums
