"""Entropy coding of matrices of few values, most of them the same one, with context models.

A cell is filled if it does not hold the most frequent value. First the rows and columns with a filled cell are coded;
then, for each cell of such a row and column, whether it is filled; then its value, from coarse to fine. Contexts are
the neighbours and the earlier cells of the row and the column.

Shapes: R rows, C columns, K values besides the most frequent one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bloomery.models.onnx_storage.arithmetic_coder import BitCoder, ContextModel, LogisticMixer

_MAX_STRIDE = 64
_MAX_COUNT = 2000.0  # cells; with more, recent ones have more weight than earlier ones
# Filled cells after which the density of a row, column or pattern weighs as much as that of the matrix. Tuned on LeNets
# with 1% nonzero weights, like the initial weights of the mixers.
_LINE_PATIENCE, _NEIGHBOUR_PATIENCE = 1.2, 1.0


class MatrixHeader(NamedTuple):
    """The properties of a matrix that are stored before its cells."""

    num_rows: int
    num_columns: int
    num_values: int  # K
    num_filled: int  # cells that do not hold the most frequent value
    stride: int  # cells this far apart in a row are neighbours, as pixels above each other are


def describe_matrix(codes_RC: np.ndarray, num_values: int) -> MatrixHeader:
    """The header of `codes_RC`, which holds 0 for the most frequent value and 1 to K for the others."""
    filled_RC = codes_RC > 0
    num_rows, num_columns = codes_RC.shape
    return MatrixHeader(num_rows, num_columns, num_values, int(filled_RC.sum()), _find_stride(filled_RC))


def _find_stride(filled_RC: np.ndarray) -> int:
    """The distance, from 2 on, at which cells of a row are most often filled together."""
    max_stride = min(_MAX_STRIDE, filled_RC.shape[1] - 1)
    num_pairs = [int((filled_RC[:, stride:] & filled_RC[:, :-stride]).sum()) for stride in range(2, max_stride + 1)]
    return 2 + int(np.argmax(num_pairs)) if num_pairs else 2


def count_decisions(codes_RC: np.ndarray, num_values: int) -> int:
    """The number of coded bits of the matrix; each takes a few microseconds."""
    filled_RC = codes_RC > 0
    num_crossings = int(filled_RC.any(axis=1).sum()) * int(filled_RC.any(axis=0).sum())
    return sum(codes_RC.shape) + num_crossings + int(filled_RC.sum()) * (num_values - 1).bit_length()


def code_matrix(coder: BitCoder, header: MatrixHeader, codes_RC: np.ndarray | None, max_decisions: int) -> np.ndarray:
    """Write `codes_RC`, or read a matrix where it is None; returns the codes, uint8 (R, C).

    Raises:
        ValueError: more than `max_decisions` bits would be read, as after a corrupt header.
    """
    if header.num_rows + header.num_columns > max_decisions:
        raise ValueError(f"{header} is too large")
    rows = _code_lines(coder, None if codes_RC is None else np.asarray(codes_RC.any(axis=1)), header.num_rows)
    columns = _code_lines(coder, None if codes_RC is None else np.asarray(codes_RC.any(axis=0)), header.num_columns)
    num_cells = len(rows) * len(columns)
    if num_cells > max_decisions:
        raise ValueError(f"{len(rows)} rows of {len(columns)} cells are too many")
    cells = _CellCoder(header, min(max(header.num_filled / max(num_cells, 1), 1e-4), 1 - 1e-4))
    coded_RC = np.zeros((header.num_rows, header.num_columns), np.uint8)
    above = [0] * header.num_columns
    for row in rows:
        above = cells.code_row(coder, above, columns, None if codes_RC is None else codes_RC[row].tolist())
        coded_RC[row] = above
    return coded_RC


def _code_lines(coder: BitCoder, is_filled: np.ndarray | None, num_lines: int) -> list[int]:
    """The rows, or columns, that hold a filled cell."""
    contexts = [ContextModel() for _ in range(4)]
    mixer = LogisticMixer([1.0], _MAX_COUNT)
    last_two, lines = 0, []
    for position in range(num_lines):
        bit = 0 if is_filled is None else int(is_filled[position])
        bit = mixer.code_bit(coder, [contexts[last_two]], bit)
        last_two = (last_two << 1 | bit) & 3
        if bit:
            lines.append(position)
    return lines


class _CellCoder:
    """Codes the cells of a matrix row by row, with contexts from the cells before."""

    def __init__(self, header: MatrixHeader, density: float) -> None:
        self.density, self.stride = density, header.stride
        self.depth = max(header.num_values - 1, 0).bit_length()
        self.columns = [ContextModel(density, _LINE_PATIENCE / density) for _ in range(header.num_columns)]
        self.neighbours = [ContextModel(density, _NEIGHBOUR_PATIENCE / density) for _ in range(32)]
        self.signs = [0] * header.num_columns  # of a column's last filled cell: 0 none yet, 1 low codes, 2 high codes
        self.tree = [ContextModel() for _ in range(1 << self.depth)]
        self.by_signs = [ContextModel() for _ in range(9 << self.depth)]
        self.by_left = [ContextModel() for _ in range(9 << self.depth)]
        # Row and column contexts count as independent, so the density of the matrix is subtracted again. It is fixed.
        self.base = ContextModel(density, math.inf)
        self.fill_mixer = LogisticMixer([0.8, 0.9, 0.5, -1.2], _MAX_COUNT)
        self.value_mixer = LogisticMixer([0.4, 0.4, 0.3], _MAX_COUNT)

    def code_row(self, coder: BitCoder, above: list[int], columns: list[int], codes: list[int] | None) -> list[int]:
        """The codes of the next row; `above` has those of the row before."""
        row = [0] * len(above)
        density = ContextModel(self.density, _LINE_PATIENCE / self.density)
        stride, sign = self.stride, 0
        for column in columns:
            left = row[column - 1] if column else 0
            left_2 = row[column - 2] if column > 1 else 0
            over = row[column - stride] if column >= stride else 0
            over_right = row[column - stride + 1] if column >= stride else 0
            neighbours = (
                (left > 0) | (left_2 > 0) << 1 | (over > 0) << 2 | (over_right > 0) << 3 | (above[column] > 0) << 4
            )
            contexts = [density, self.columns[column], self.neighbours[neighbours], self.base]
            code = codes[column] if codes else 0
            if self.fill_mixer.code_bit(coder, contexts, int(code > 0)):
                code = self._code_value(coder, code, sign, self.signs[column], self._sign(left), self._sign(over))
                sign = self.signs[column] = self._sign(code)
                row[column] = code
        return row

    def _sign(self, code: int) -> int:
        return 0 if not code else 1 + (code - 1 >> max(self.depth - 1, 0))

    def _code_value(self, coder: BitCoder, code: int, row: int, column: int, left: int, over: int) -> int:
        """The code 1 to K, bit by bit, the highest first."""
        node, by_signs, by_left = 1, row * 3 + column << self.depth, left * 3 + over << self.depth
        for shift in range(self.depth - 1, -1, -1):
            contexts = [self.tree[node], self.by_signs[by_signs + node], self.by_left[by_left + node]]
            node = node << 1 | self.value_mixer.code_bit(coder, contexts, code - 1 >> shift & 1)
        return node - (1 << self.depth) + 1
