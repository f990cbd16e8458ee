"""A mergeable histogram of float64 values that gives quantiles and exact moments, independent of the values' order.

A bucket contains the values with equal sign, exponent and first 10 fraction bits, so its values differ by a relative
2 ** -10 at most. For each bucket the sketch stores the count, the minimum, and the exact sums of the remaining 42 bits
and of their squares, for up to 2 ** 40 values. Sketches of partitions add up to the sketch of all values, bit for bit.

Source: Masson, Rim & Lee 2019, "DDSketch: A fast and fully-mergeable quantile sketch with relative-error guarantees"
(buckets of constant relative width); the buckets here are those of the binary representation.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bloomery.models.features.statistics.moments import Moments, repeated_moments

_REST_BITS = 42  # of a value's 52 fraction bits, those that its bucket does not determine
_REST = (1 << _REST_BITS) - 1
_OCTAVE_BITS = 10  # of a bucket's number, those that number the buckets of one sign and exponent
_NUM_OCTAVES = 1 << 12
_HALF_BITS = 21
_HALF = (1 << _HALF_BITS) - 1
_MAGNITUDE = 2**63 - 1
_SLICE = 1 << 18  # values per slice: sums over a slice fit into 64 bits
# The rows of `cells`. The sum of remaining bits has two digits of 42 bits, the sum of their squares three.
_BUCKET, _COUNT, _MINIMUM, _SUM, _SQUARES = 0, 1, 2, slice(3, 5), slice(5, 8)
_NUM_CELLS = 8


@dataclass(frozen=True, eq=False)
class QuantileSketch:
    """`cells` int64 (8, buckets), sorted by bucket."""

    cells: np.ndarray

    @property
    def count(self) -> int:
        return int(self.cells[_COUNT].sum())

    def __add__(self, other: QuantileSketch) -> QuantileSketch:
        return merge_sketches([self, other])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantileSketch) and np.array_equal(self.cells, other.cells)

    def to_text(self) -> str:
        return base64.b64encode(self.cells.astype("<i8").tobytes()).decode()


def empty_sketch() -> QuantileSketch:
    return QuantileSketch(np.zeros((_NUM_CELLS, 0), np.int64))


def parse_sketch(text: str) -> QuantileSketch:
    return QuantileSketch(np.frombuffer(base64.b64decode(text), "<i8").reshape(_NUM_CELLS, -1).astype(np.int64))


def build_sketch(values: np.ndarray) -> QuantileSketch:
    """The sketch of finite float64 `values` of any shape."""
    flat = values.reshape(-1)
    pieces = [_sketch_of_slice(flat[start : start + _SLICE]) for start in range(0, flat.size, _SLICE)]
    return merge_sketches(pieces)


def _sketch_of_slice(values: np.ndarray) -> QuantileSketch:
    ordered = _sorted_by_bucket(_ordered(values))
    bucket = ordered >> _REST_BITS
    starts = np.concatenate([[0], np.flatnonzero(bucket[1:] != bucket[:-1]) + 1])
    remainders = (ordered ^ (ordered >> 63)) & _REST
    high, low = remainders >> _HALF_BITS, remainders & _HALF
    cells = np.empty((_NUM_CELLS, len(starts)), np.int64)
    cells[_BUCKET] = bucket[starts]
    cells[_COUNT] = np.diff(starts, append=len(ordered))
    cells[_MINIMUM] = np.minimum.reduceat(ordered, starts)
    cells[3], cells[4] = _digits_of(np.add.reduceat(remainders, starts))
    squares, products, lowest_digit = (np.add.reduceat(part, starts) for part in (high * high, high * low, low * low))
    # (high * 2**21 + low)² = high² * 2**42 + 2 * high * low * 2**21 + low²
    carry, cells[5] = _carry(((products & (_HALF >> 1)) << (_HALF_BITS + 1)) + (lowest_digit & _REST))
    carry, cells[6] = _carry(carry + (lowest_digit >> _REST_BITS) + (products >> (_HALF_BITS - 1)) + (squares & _REST))
    cells[7] = carry + (squares >> _REST_BITS)
    return QuantileSketch(cells)


def _sorted_by_bucket(ordered: np.ndarray) -> np.ndarray:
    """Sorts by 16-bit bucket numbers where possible, since numpy radix-sorts these much faster than 64-bit values."""
    bucket = ordered >> _REST_BITS
    lowest = int(bucket.min())
    if int(bucket.max()) - lowest < 2**16:
        return ordered[np.argsort((bucket - lowest).astype(np.uint16), kind="stable")]
    octave = (bucket >> _OCTAVE_BITS) + _NUM_OCTAVES // 2
    occupied = np.bincount(octave, minlength=_NUM_OCTAVES) > 0
    if int(occupied.sum()) > 2**16 >> _OCTAVE_BITS:
        return np.sort(ordered)
    position = (np.cumsum(occupied) - 1).astype(np.uint16) << np.uint16(_OCTAVE_BITS)
    short = position[octave] | (bucket & ((1 << _OCTAVE_BITS) - 1)).astype(np.uint16)
    return ordered[np.argsort(short, kind="stable")]


def _carry(digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The carry to the next digit, and the remaining digit of 42 bits."""
    return digits >> _REST_BITS, digits & _REST


def _digits_of(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return sums & _REST, sums >> _REST_BITS


def merge_sketches(sketches: Sequence[QuantileSketch]) -> QuantileSketch:
    """The sketch of the values of all `sketches`."""
    cells = np.concatenate([np.zeros((_NUM_CELLS, 0), np.int64), *(part.cells for part in sketches)], axis=1)
    if len(sketches) < 2 or cells.shape[1] == 0:
        return QuantileSketch(cells)
    cells = cells[:, np.argsort(cells[_BUCKET], kind="stable")]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(cells[_BUCKET])) + 1])
    merged = np.add.reduceat(cells, starts, axis=1)
    merged[_BUCKET] = cells[_BUCKET, starts]
    merged[_MINIMUM] = np.minimum.reduceat(cells[_MINIMUM], starts)
    for digit in (3, 5, 6):
        carry, merged[digit] = _carry(merged[digit])
        merged[digit + 1] += carry
    return QuantileSketch(merged)


def quantiles(sketch: QuantileSketch, shares: Sequence[float]) -> list[float]:
    """For each share in [0, 1], the minimum of the bucket with rank ceil(share * count), from rank 1.

    It is an observed value, smaller than the exact quantile by a relative 2 ** -10 at most.
    """
    ranks = np.cumsum(sketch.cells[_COUNT])
    target_ranks = np.maximum(np.ceil(np.asarray(shares) * int(ranks[-1])), 1)
    minima = sketch.cells[_MINIMUM, np.searchsorted(ranks, target_ranks)]
    return [float(value) for value in _values(minima)]


def cumulative_counts(sketch: QuantileSketch) -> tuple[np.ndarray, np.ndarray]:
    """The minimum of each bucket, ascending, and the number of values in earlier buckets, both float64."""
    before = np.cumsum(sketch.cells[_COUNT]) - sketch.cells[_COUNT]
    return _values(sketch.cells[_MINIMUM]), before.astype(np.float64)


def sketch_moments(sketch: QuantileSketch) -> Moments:
    """The exact moments of all values."""
    if sketch.cells.shape[1] == 0:
        return Moments()
    bucket, count = sketch.cells[_BUCKET], sketch.cells[_COUNT]
    (s0, s1), (t0, t1, t2) = sketch.cells[_SUM], sketch.cells[_SQUARES]
    magnitude = bucket ^ (bucket >> 63)
    exponent = magnitude >> _OCTAVE_BITS
    # A value is lead * 2**42 + rest, in units of its exponent; a subnormal value has no leading 1.
    lead = (magnitude & ((1 << _OCTAVE_BITS) - 1)) + np.where(exponent > 0, 1 << _OCTAVE_BITS, 0)
    carry, cross = _carry(2 * lead * s0)
    digits = np.stack([count, s0, count * lead + s1, t0, t1 + cross, carry + t2 + count * lead * lead + 2 * lead * s1])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(bucket >> _OCTAVE_BITS)) + 1])
    groups = np.add.reduceat(digits, starts, axis=1)
    sums = Moments()
    for position, start in enumerate(starts):
        number, low, high, *tail = (int(digit) for digit in groups[:, position])
        total = low + (high << _REST_BITS)
        squares = sum(digit << digit_number * _REST_BITS for digit_number, digit in enumerate(tail))
        shift = max(int(exponent[start]) - 1, 0)
        sign = -1 if bucket[start] < 0 else 1
        sums += Moments(count=number, total=sign * total << shift, total_of_squares=squares << 2 * shift)
    return sums


def clipped_moments(sketch: QuantileSketch, low: float | None, high: float | None) -> Moments:
    """The exact moments after clipping to `low` and `high`, which are minima of buckets or None."""
    bucket = sketch.cells[_BUCKET]
    below = np.zeros(len(bucket), bool) if low is None else bucket < _bucket_of(low)
    above = np.zeros(len(bucket), bool) if high is None else (bucket >= _bucket_of(high)) & ~below
    sums = sketch_moments(QuantileSketch(sketch.cells[:, ~(below | above)]))
    for limit, is_clipped in ((low, below), (high, above)):
        if limit is not None:
            sums += repeated_moments(limit, int(sketch.cells[_COUNT, is_clipped].sum()))
    return sums


def _bucket_of(value: float) -> int:
    return int(_ordered(np.array([value]))[0] >> _REST_BITS)


def _ordered(values: np.ndarray) -> np.ndarray:
    """The bits of float64 values as int64 in the same order; -0.0 counts as 0.0."""
    bits = (values + 0.0).view(np.int64)
    return bits ^ ((bits >> 63) & _MAGNITUDE)


def _values(ordered: np.ndarray) -> np.ndarray:
    """The inverse of `_ordered`."""
    return (ordered ^ ((ordered >> 63) & _MAGNITUDE)).view(np.float64)
