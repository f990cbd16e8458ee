"""Histograms of a column's values, and the divergence between two of them.

A numeric column has bins between edges: below the first, from each edge to the next, and from the last. Any other
column has one bin per value. Two more bins hold other values and null. Histograms add up exactly, in any order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.odcs.base import CamelModel
from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.rules import Divergence

SMALLEST_SHARE = 1e-4  # smaller shares count as this, since the logarithm of 0 is undefined
Share = Annotated[float, Field(ge=0, le=1)]


class Bins(CamelModel):
    """The bins of a histogram: between `edges`, or one for each of `values`."""

    edges: tuple[float, ...] | None = None
    values: tuple[bool | int | str, ...] | None = None

    @model_validator(mode="after")
    def _are_consistent(self) -> Self:
        if (self.edges is None) == (self.values is None):
            raise ValueError("a column must have either edges or values")
        if not (self.edges or self.values):
            raise ValueError("a column must have at least one edge or value")
        if self.edges is not None and any(a >= b for a, b in itertools.pairwise(self.edges)):
            raise ValueError("edges must rise")
        if self.values is not None and len({(type(value), value) for value in self.values}) < len(self.values):
            raise ValueError("a value occurs twice")
        if self.values is not None and len({type(value) for value in self.values}) > 1:
            raise ValueError("values must have one type")
        return self

    @property
    def num_bins(self) -> int:
        """The number of bins, without those for other values and null."""
        return len(self.values) if self.values is not None else len(self.edges or ()) + 1


class ReferenceColumn(Bins):
    """The share of rows in each bin. With the shares of other values and null they add up to one."""

    shares: tuple[Share, ...]
    other_share: Share = 0.0
    null_share: Share = 0.0

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        if len(self.shares) != self.num_bins:
            raise ValueError(f"{self.num_bins} bins have {len(self.shares)} shares; each needs one")
        total = math.fsum(self.all_shares)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares, otherShare and nullShare add up to {total:g}, not to 1")
        return self

    @property
    def all_shares(self) -> tuple[float, ...]:
        """The shares of the bins, of other values and of null."""
        return (*self.shares, self.other_share, self.null_share)


class Histogram(Bins):
    """The number of rows in each bin."""

    counts: tuple[int, ...]
    num_other: int = 0
    num_null: int = 0

    def __add__(self, other: Histogram) -> Histogram:
        if (self.edges, self.values) != (other.edges, other.values):
            raise ValueError("histograms with different bins cannot be added")
        return self.model_copy(
            update={
                "counts": tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
                "num_other": self.num_other + other.num_other,
                "num_null": self.num_null + other.num_null,
            }
        )

    @property
    def num_rows(self) -> int:
        return sum(self.counts) + self.num_other + self.num_null

    @property
    def all_shares(self) -> tuple[float, ...]:
        """The shares of the bins, of other values and of null. There is at least one row."""
        return tuple(count / self.num_rows for count in (*self.counts, self.num_other, self.num_null))


class Reference(Document):
    """A named set of distributions, such as those of the rows that a model was trained on, by column."""

    model_config = CamelModel.model_config

    columns: Annotated[dict[str, ReferenceColumn], Field(min_length=1)]


def reference_column(counts: Histogram) -> ReferenceColumn:
    """The shares of a histogram of at least one row."""
    *shares, other_share, null_share = counts.all_shares
    return ReferenceColumn(
        edges=counts.edges, values=counts.values, shares=tuple(shares), other_share=other_share, null_share=null_share
    )


def count_into_bins(bins: Bins, values: pa.Array | pa.ChunkedArray) -> Histogram:
    """Counts `values` per bin. A number that is not finite counts as another value."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    present = values.drop_null()
    indices = _bin_indices(bins, present)
    counts = np.bincount(indices, minlength=bins.num_bins + 1)
    return Histogram(
        edges=bins.edges,
        values=bins.values,
        counts=tuple(int(count) for count in counts[:-1]),
        num_other=int(counts[-1]),
        num_null=len(values) - len(present),
    )


def _bin_indices(bins: Bins, present: pa.Array) -> np.ndarray:
    """The index of each value's bin; the number of bins for a value in none."""
    if bins.edges is not None:
        numbers = present.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        indices = np.searchsorted(np.asarray(bins.edges), numbers, side="right")
        return np.where(np.isfinite(numbers), indices, bins.num_bins)
    values = bins.values or ()
    if pa.types.is_integer(present.type) or pa.types.is_floating(present.type):
        kind = pa.int64() if pa.types.is_integer(present.type) else pa.float64()
        present = present.cast(kind)
        known_array = pa.array(values, kind)
    else:
        known_array = pa.array(values, present.type)
    return pc.index_in(present, known_array).fill_null(bins.num_bins).to_numpy(zero_copy_only=False)


def kl_divergence(expected: Sequence[float], observed: Sequence[float]) -> float:
    """The divergence of `observed` from `expected`, in nats: sum of observed * ln(observed / expected) over the bins.

    Shares below `SMALLEST_SHARE` are raised to it, and all are scaled to add up to one, so the result is finite and at
    least zero up to rounding.

    Source: Kullback and Leibler, On Information and Sufficiency (1951).
    """
    pairs = zip(_smooth(expected), _smooth(observed), strict=True)
    return max(0.0, math.fsum(q * math.log(q / p) for p, q in pairs))


def psi(expected: Sequence[float], observed: Sequence[float]) -> float:
    """The population stability index: sum of (observed - expected) * ln(observed / expected), smoothed as in `kl`.

    It is symmetric. Below 0.1 is usually read as no change, above 0.25 as a large one.

    Source: Siddiqi, Credit Risk Scorecards (2006), chapter 9; Jeffreys, An Invariant Form for the Prior Probability
        (1946).
    """
    pairs = zip(_smooth(expected), _smooth(observed), strict=True)
    return math.fsum((q - p) * math.log(q / p) for p, q in pairs)


def compute_divergence(divergence: Divergence, expected: ReferenceColumn, observed: Histogram) -> float:
    """The divergence of the counts from the reference, with a bin each for other values and null.

    `observed` has the reference's bins and at least one row.
    """
    measure = {"psi": psi, "kl": kl_divergence}[divergence]
    return measure(expected.all_shares, observed.all_shares)


def _smooth(shares: Sequence[float]) -> list[float]:
    raised = [max(share, SMALLEST_SHARE) for share in shares]
    total = math.fsum(raised)
    return [share / total for share in raised]


def require_reference(reference: Reference, name: str, column: Column) -> None:
    """Checks that `reference` has bins for the values of `column`.

    Raises:
        ValueError: it has none, or they have another type.
    """
    shares = reference.columns.get(column.name)
    if shares is None:
        columns = ", ".join(sorted(reference.columns))
        raise ValueError(f"reference {name} has no column {column.name}; it has {columns}")
    fitting = {"integer": int, "string": str, "boolean": bool}.get(column.logical_type)
    if shares.edges is not None and column.logical_type not in ("integer", "number"):
        raise ValueError(f"reference {name} has edges for column {column.name}, which is {column.logical_type}")
    if shares.values is not None and (fitting is None or any(type(value) is not fitting for value in shares.values)):
        raise ValueError(f"the values of reference {name} do not fit column {column.name}, {column.logical_type}")
    if shares.values is not None and fitting is int and any(abs(value) >= 2**63 for value in map(int, shares.values)):
        raise ValueError(f"the values of reference {name} do not fit column {column.name}, {column.logical_type}")
