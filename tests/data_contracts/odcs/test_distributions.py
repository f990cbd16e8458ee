"""Histograms, and the divergence of two distributions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.odcs.distributions import (
    Bins,
    Histogram,
    compute_divergence,
    count_into_bins,
    kl_divergence,
    psi,
    reference_column,
)

EDGES = Bins(edges=(0.0, 1.0, 10.0))
SHARES = st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(sum)


def test_an_edge_belongs_to_the_bin_above_it():
    counts = count_into_bins(EDGES, pa.array([-1.0, 0.0, 0.5, 1.0, 10.0, 1e300, None, math.nan, math.inf]))
    assert (counts.counts, counts.num_other, counts.num_null) == ((1, 2, 1, 2), 2, 1)


@pytest.mark.parametrize(
    ("values", "array", "expected"),
    [
        (("a", "b"), pa.array(["b", "a", "b", "z", None]), ((1, 2), 1, 1)),
        ((1, 300), pa.array([1, 2, None], pa.uint8()), ((1, 0), 1, 1)),
        ((1, 2), pa.array([1.0, 1.5, 2.0]), ((1, 1), 1, 0)),
        ((True,), pa.array([True, False, None]), ((1,), 1, 1)),
        (("a",), pa.array([], pa.string()), ((0,), 0, 0)),
        (("a",), pa.array([None, None], pa.string()), ((0,), 0, 2)),
        (("a",), pa.chunked_array([["a"], ["b"]]), ((1,), 1, 0)),
    ],
)
def test_every_value_has_a_bin(values, array, expected):
    counts = count_into_bins(Bins(values=values), array)
    assert (counts.counts, counts.num_other, counts.num_null) == expected


@settings(deadline=None)
@given(values=st.lists(st.none() | st.floats(-20, 20), max_size=40), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_counts_add_up_over_batches_in_any_order(values, cuts):
    expected = count_into_bins(EDGES, pa.array(values, pa.float64()))
    ends = [0, *sorted(min(row, len(values)) for row in cuts), len(values)]
    parts = [count_into_bins(EDGES, pa.array(values[low:high], pa.float64())) for low, high in itertools.pairwise(ends)]
    for order in (parts, parts[::-1]):
        total = order[0]
        for part in order[1:]:
            total = total + part
        assert total == expected
    assert expected.num_rows == len(values)
    finite = [value for value in values if value is not None]
    edges = [-math.inf, *(EDGES.edges or ()), math.inf]
    assert expected.counts == tuple(
        sum(low <= value < high for value in finite) for low, high in itertools.pairwise(edges)
    )


def test_histograms_with_different_bins_cannot_be_added():
    with pytest.raises(ValueError, match="different bins"):
        count_into_bins(EDGES, pa.array([1.0])) + count_into_bins(Bins(edges=(0.0,)), pa.array([1.0]))


def test_a_reference_has_the_shares_of_the_counts():
    counts = Histogram(values=("a", "b"), counts=(1, 2), num_other=4, num_null=1)
    reference = reference_column(counts)
    assert reference.all_shares == (1 / 8, 2 / 8, 4 / 8, 1 / 8)
    for divergence in ("psi", "kl"):
        assert compute_divergence(divergence, reference, counts) == 0


def shares(counts: list[int]) -> list[float]:
    return [count / sum(counts) for count in counts]


@settings(deadline=None)
@given(counts=st.data())
def test_divergences_are_finite_and_zero_only_for_equal_distributions(counts):
    first = shares(counts.draw(SHARES))
    second = shares(counts.draw(st.lists(st.integers(0, 50), min_size=len(first), max_size=len(first)).filter(sum)))
    assert psi(first, first) == kl_divergence(first, first) == 0
    assert psi(first, second) == pytest.approx(psi(second, first), abs=1e-12)
    assert psi(first, second) == pytest.approx(kl_divergence(first, second) + kl_divergence(second, first), abs=1e-12)
    assert 0 <= kl_divergence(first, second) < math.inf
    assert (psi(first, second) > 1e-9) == (np.abs(np.subtract(first, second)).max() > 1e-5)


def test_a_known_divergence():
    assert psi([0.5, 0.5], [0.75, 0.25]) == pytest.approx(0.25 * math.log(1.5) - 0.25 * math.log(0.5), rel=1e-12)
    assert kl_divergence([0.5, 0.5], [0.75, 0.25]) == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-12
    )


def test_an_empty_bin_counts_as_one_in_ten_thousand():
    assert kl_divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(
        0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-4), rel=1e-3
    )


def test_payments_of_a_later_year_have_drifted(datasets):
    import pyarrow.csv

    folder = datasets / "nyc_taxi"
    bins = Bins(values=("1", "2", "3", "4"))
    months = {}
    for month in ("2018-01", "2018-07", "2020-05"):
        text = {"payment_type": pa.string()}
        options = pyarrow.csv.ConvertOptions(include_columns=["payment_type"], column_types=text)
        table = pyarrow.csv.read_csv(folder / f"yellow_tripdata_sample_{month}.csv", convert_options=options)
        months[month] = count_into_bins(bins, table["payment_type"].combine_chunks())
    reference = reference_column(months["2018-01"])
    assert (
        compute_divergence("psi", reference, months["2018-07"])
        < 0.1
        < 0.25
        < compute_divergence("psi", reference, months["2020-05"])
    )
