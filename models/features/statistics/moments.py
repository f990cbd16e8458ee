"""Exact moments: count, mean and deviation, independent of the order and batches of the values."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from bloomery.data_contracts.documents.documents import Document

UNIT_BITS = 1074  # every finite float64 is an integer multiple of 2 ** -1074


class Moments(Document):
    """Exact count, sum and sum of squares of finite values, which can be added in any order.

    The sums are integers, in units of 2 ** -UNIT_BITS and of its square.
    """

    count: int = 0
    total: int = 0
    total_of_squares: int = 0

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            count=self.count + other.count,
            total=self.total + other.total,
            total_of_squares=self.total_of_squares + other.total_of_squares,
        )

    def mean(self) -> float:
        """The mean, rounded once; 0 if there are no values."""
        return float(Fraction(self.total, self.count << UNIT_BITS)) if self.count else 0.0

    def deviation(self) -> float:
        """The standard deviation, rounded to 53 bits or better; 1 if all values are equal."""
        if self.count == 0:
            return 1.0
        # count² * variance, in units of 2 ** (-2 * UNIT_BITS)
        spread = self.count * self.total_of_squares - self.total * self.total
        # 64 additional bits, so that the root has more correct bits than a float64
        root = math.isqrt(spread << 128)
        return float(Fraction(root, self.count << (UNIT_BITS + 64))) or 1.0


def repeated_moments(value: float, count: int) -> Moments:
    """The moments of `count` copies of one value."""
    numerator, denominator = value.as_integer_ratio()
    unit = (numerator << UNIT_BITS) // denominator  # exact: the denominator is a power of two up to 2 ** UNIT_BITS
    return Moments(count=count, total=count * unit, total_of_squares=count * unit * unit)


def byte_moments(values: np.ndarray) -> Moments:
    """The moments of uint8 values."""
    counts = np.bincount(values.reshape(-1), minlength=256)
    level = np.arange(256)
    return Moments(
        count=int(counts.sum()),
        total=int((counts * level).sum()) << UNIT_BITS,
        total_of_squares=int((counts * level * level).sum()) << 2 * UNIT_BITS,
    )
