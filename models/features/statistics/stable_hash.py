"""Hashes of numbers and text that do not depend on process, machine or version."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

# The base of the polynomial, odd so that it is invertible modulo 2 ** 64.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


def stable_hashes(column: pa.Array, salt: int = 0) -> np.ndarray:
    """Hashes each value: uint64 (B,), from the value and `salt` alone. A null counts as 0 or "".

    Equal numbers of different types have equal hashes. Text is hashed as a polynomial over its bytes modulo 2 ** 64,
    computed for all rows at once from running sums.

    Source: Karp & Rabin 1987 (the polynomial); Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
    generators" (the mixing function).
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _mix_bits(_polynomials(column), salt)
    if pa.types.is_floating(column.type):
        values = np.nan_to_num(column.to_numpy(zero_copy_only=False).astype(np.float64))
        is_integer = (values == np.floor(values)) & (np.abs(values) < 2**63)
        integers = np.where(is_integer, values, 0).astype(np.int64)
        return _mix_bits(np.where(is_integer, integers, values.view(np.int64)).view(np.uint64), salt)
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    integers = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return _mix_bits(np.ascontiguousarray(integers).view(np.uint64), salt)


def _polynomials(column: pa.Array) -> np.ndarray:
    """The polynomial of each text's bytes, plus its length: uint64 (B,)."""
    column = column.fill_null("") if column.null_count else column
    _, ends, data = column.buffers()
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    edges = np.frombuffer(ends, width)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    first, last = int(edges[0]), int(edges[-1])
    letters = np.frombuffer(data, np.uint8)[first:last] if last > first else np.zeros(0, np.uint8)
    powers = np.multiply.accumulate(np.full(len(letters), _BASE, np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((letters + np.uint64(1)) * powers, dtype=np.uint64)])
    inverses = np.multiply.accumulate(np.full(len(letters) + 1, _INVERSE, np.uint64))
    starts, stops = edges[:-1] - first, edges[1:] - first
    return (sums[stops] - sums[starts]) * inverses[starts] + (stops - starts).astype(np.uint64)


def _mix_bits(values: np.ndarray, salt: int) -> np.ndarray:
    """Mixes the bits, so that every output bit depends on every input bit."""
    z = values + np.uint64(salt * _BASE % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
