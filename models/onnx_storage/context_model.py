"""Matrices of few values, most of them the same one, in bits that contexts foretell.

First which rows and columns hold anything; then, where one that does meets another, whether the cell does; then which
of the other values it is, from the coarse to the fine. What neighbours, row and column have held so far foretells it.

Shapes: R rows, C columns, K values besides the most frequent one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bloomery.models.onnx_storage.arithmetic_coder import BitCoder, ContextModel, LogisticMixer

_MOST_STRIDE = 64
_MOST_SEEN = 2000.0  # cells after which the latest ones weigh more than those before
# The filled cells, as many as there are in all, after which a row's, column's or pattern's own density weighs as much
# as the matrix's. Found on LeNets of one weight in a hundred, as the mixers' beginnings were.
_LINE_PATIENCE, _NEAR_PATIENCE = 1.2, 1.0


class MatrixHeader(NamedTuple):
    """What is known of a matrix before its cells are."""

    num_rows: int
    num_columns: int
    num_values: int  # K
    num_filled: int  # cells that hold another value than the most frequent one
    stride: int  # cells that lie this far apart in a row are neighbours, as pixels above each other are


def describe_matrix(codes_RC: np.ndarray, num_values: int) -> MatrixHeader:
    """`codes_RC` holds 0 for the most frequent value, and 1 to K for the others."""
    filled_RC = codes_RC > 0
    num_rows, num_columns = codes_RC.shape
    return MatrixHeader(num_rows, num_columns, num_values, int(filled_RC.sum()), _stride_of(filled_RC))


def _stride_of(filled_RC: np.ndarray) -> int:
    """The distance, from 2 on, at which cells of a row are filled together most often."""
    most = min(_MOST_STRIDE, filled_RC.shape[1] - 1)
    together = [int((filled_RC[:, far:] & filled_RC[:, :-far]).sum()) for far in range(2, most + 1)]
    return 2 + int(np.argmax(together)) if together else 2


def count_decisions(codes_RC: np.ndarray, num_values: int) -> int:
    """How many bits are coded for the matrix, each of which takes some microseconds."""
    filled_RC = codes_RC > 0
    live = int(filled_RC.any(axis=1).sum()) * int(filled_RC.any(axis=0).sum())
    return sum(codes_RC.shape) + live + int(filled_RC.sum()) * (num_values - 1).bit_length()


def code_matrix(coder: BitCoder, shape: MatrixHeader, given_RC: np.ndarray | None, most_decisions: int) -> np.ndarray:
    """The codes, uint8 (R, C): written from `given_RC`, or read where that is None.

    Raises:
        ValueError: more than `most_decisions` would have to be read, as after a broken beginning.
    """
    if shape.num_rows + shape.num_columns > most_decisions:
        raise ValueError(f"{shape} is too large")
    rows = _lines(coder, None if given_RC is None else np.asarray(given_RC.any(axis=1)), shape.num_rows)
    columns = _lines(coder, None if given_RC is None else np.asarray(given_RC.any(axis=0)), shape.num_columns)
    num_cells = len(rows) * len(columns)
    if num_cells > most_decisions:
        raise ValueError(f"{len(rows)} rows of {len(columns)} cells are too many")
    cells = _Cells(shape, min(max(shape.num_filled / max(num_cells, 1), 1e-4), 1 - 1e-4))
    codes_RC = np.zeros((shape.num_rows, shape.num_columns), np.uint8)
    above = [0] * shape.num_columns
    for row in rows:
        above = cells.row(coder, above, columns, None if given_RC is None else given_RC[row].tolist())
        codes_RC[row] = above
    return codes_RC


def _lines(coder: BitCoder, given: np.ndarray | None, number: int) -> list[int]:
    """Which rows, or columns, hold anything."""
    contexts = [ContextModel() for _ in range(4)]
    mixer = LogisticMixer([1.0], _MOST_SEEN)
    before, found = 0, []
    for place in range(number):
        bit = mixer.bit(coder, [contexts[before]], 0 if given is None else int(given[place]))
        before = (before << 1 | bit) & 3
        if bit:
            found.append(place)
    return found


class _Cells:
    """What the cells so far foretell of the next one."""

    def __init__(self, shape: MatrixHeader, density: float) -> None:
        self.density, self.stride = density, shape.stride
        self.depth = max(shape.num_values - 1, 0).bit_length()
        self.columns = [ContextModel(density, _LINE_PATIENCE / density) for _ in range(shape.num_columns)]
        self.near = [ContextModel(density, _NEAR_PATIENCE / density) for _ in range(32)]
        self.signs = [0] * shape.num_columns  # of a column's last filled cell: 0 none yet, 1 low codes, 2 high codes
        self.tree = [ContextModel() for _ in range(1 << self.depth)]
        self.by_signs = [ContextModel() for _ in range(9 << self.depth)]
        self.by_left = [ContextModel() for _ in range(9 << self.depth)]
        # That of a row and of a column count as if independent, which takes that of all cells off again. It stays.
        self.base = ContextModel(density, math.inf)
        self.is_filled = LogisticMixer([0.8, 0.9, 0.5, -1.2], _MOST_SEEN)
        self.which = LogisticMixer([0.4, 0.4, 0.3], _MOST_SEEN)

    def row(self, coder: BitCoder, above: list[int], columns: list[int], given: list[int] | None) -> list[int]:
        """The codes of the next row; `above` are those of the one before."""
        row = [0] * len(above)
        density = ContextModel(self.density, _LINE_PATIENCE / self.density)
        stride, sign = self.stride, 0
        for place in columns:
            left = row[place - 1] if place else 0
            left_2 = row[place - 2] if place > 1 else 0
            over = row[place - stride] if place >= stride else 0
            over_right = row[place - stride + 1] if place >= stride else 0
            near = (left > 0) | (left_2 > 0) << 1 | (over > 0) << 2 | (over_right > 0) << 3 | (above[place] > 0) << 4
            contexts = [density, self.columns[place], self.near[near], self.base]
            code = given[place] if given else 0
            if self.is_filled.bit(coder, contexts, int(code > 0)):
                code = self._value(coder, code, sign, self.signs[place], self._sign(left), self._sign(over))
                sign = self.signs[place] = self._sign(code)
                row[place] = code
        return row

    def _sign(self, code: int) -> int:
        return 0 if not code else 1 + (code - 1 >> max(self.depth - 1, 0))

    def _value(self, coder: BitCoder, code: int, row: int, column: int, left: int, over: int) -> int:
        """1 to K, bit by bit, the highest first."""
        node, by_signs, by_left = 1, row * 3 + column << self.depth, left * 3 + over << self.depth
        for shift in range(self.depth - 1, -1, -1):
            contexts = [self.tree[node], self.by_signs[by_signs + node], self.by_left[by_left + node]]
            node = node << 1 | self.which.bit(coder, contexts, code - 1 >> shift & 1)
        return node - (1 << self.depth) + 1
