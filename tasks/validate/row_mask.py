"""A mask over the rows of a file, at one bit per row: 50 million rows take 6 MB."""

from __future__ import annotations

import numpy as np


class RowMask:
    """A bit for each of `num_rows` rows, at first all unset."""

    def __init__(self, num_rows: int) -> None:
        self._bytes = np.zeros((num_rows + 7) // 8, np.uint8)

    def add(self, rows: np.ndarray) -> None:
        """Sets the bits of the rows at these positions."""
        if len(rows):
            first, last = int(rows.min()) // 8, int(rows.max()) // 8 + 1
            bits = np.unpackbits(self._bytes[first:last])
            bits[rows - 8 * first] = 1
            self._bytes[first:last] = np.packbits(bits)

    def merge(self, other: RowMask) -> None:
        """Sets the bits that are set in `other`, which has the same number of rows."""
        self._bytes |= other._bytes

    def between(self, start: int, num_rows: int) -> np.ndarray:
        """Returns for each of the `num_rows` rows from `start` on whether its bit is set."""
        bits = np.unpackbits(self._bytes[start // 8 : (start + num_rows + 7) // 8])
        return bits[start % 8 : start % 8 + num_rows].astype(bool)

    @property
    def num_set(self) -> int:
        """The number of bits that are set."""
        return int(np.bitwise_count(self._bytes).sum())
