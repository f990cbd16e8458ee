"""Converts Arrow columns to numpy arrays, with any chunks, offsets and nulls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.requests.columnar_rows import ColumnarRows

Rows: TypeAlias = pa.Table | pa.RecordBatch | ColumnarRows
FLOAT32_MAX = float(np.finfo(np.float32).max)
_MAX_OFFSET = 2**31 - 1  # values in all lists of an array


def combine_chunks(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """All chunks as one array; a single chunk is not copied."""
    if not isinstance(values, pa.ChunkedArray):
        return values
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def valid_rows(rows: Rows, columns: Sequence[str]) -> tuple[Rows, np.ndarray | None]:
    """The rows with a value in each of `columns`, without other columns, and their mask, bool (B,).

    All rows and None if no value is missing.
    """
    arrays = [combine_chunks(rows[name]) for name in columns]
    if not any(array.null_count for array in arrays):
        return rows, None
    mask_B = np.logical_and.reduce([array.is_valid().to_numpy(zero_copy_only=False) for array in arrays])
    kept = [array.filter(pa.array(mask_B)) for array in arrays]
    return pa.RecordBatch.from_arrays(kept, names=list(columns)), mask_B


def to_floats(column: pa.Array) -> np.ndarray:
    """Float64 (B,), NaN for null; integers beyond 2**53 are rounded to the nearest float64."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def number_matrix(rows: Rows, columns: Sequence[str]) -> np.ndarray:
    """Float64 (columns, B), NaN for null."""
    if isinstance(rows, ColumnarRows) and (matrix := rows.numbers(columns)) is not None:
        return matrix
    values = np.empty((len(columns), rows.num_rows))
    for position, column in enumerate(columns):
        values[position] = to_floats(combine_chunks(rows[column]))
    return values


def to_integers(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Int64 (B,) with 0 for null, and the bool mask of nulls, or None if there are none."""
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    integers = column if pa.types.is_int64(column.type) else column.cast(pa.int64())
    return (integers if missing is None else integers.fill_null(0)).to_numpy(zero_copy_only=False), missing


def column_elements(rows: Rows, column: str) -> np.ndarray:
    """The concatenated lists of a column of `rows`."""
    if isinstance(rows, ColumnarRows) and (elements := rows.elements(column)) is not None:
        return elements
    return list_elements(rows[column])


def list_elements(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The concatenated lists of an array."""
    flat = combine_chunks(pc.list_flatten(column))
    if flat.null_count or column.null_count:
        raise ValueError("a list, or one of its elements, is null")
    return flat.to_numpy(zero_copy_only=False)


def list_array(values: np.ndarray) -> pa.ListArray:
    """Each row of an array (B, ...) as a list. Raises ValueError as `list_offsets`."""
    lengths = np.full(len(values), values.size // max(len(values), 1))
    return pa.ListArray.from_arrays(list_offsets(lengths), pa.array(values.reshape(-1)))


def list_offsets(lengths: Sequence[int] | np.ndarray) -> pa.Array:
    """The offsets, int32 (B + 1,), of lists with these lengths.

    Raises:
        ValueError: there are more values than 32 bits can count. The offsets would wrap, and lists have values of
            others.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if offsets[-1] > _MAX_OFFSET:
        raise ValueError(
            f"{len(lengths):,} lists have {offsets[-1]:,} values together, and those of one Arrow array may have "
            f"{_MAX_OFFSET:,}; pass fewer rows at once"
        )
    return pa.array(offsets.astype(np.int32))


def refuse_missing(column: str, is_missing: bool, kind: str) -> None:
    """Raises DataUnfit if `is_missing`, naming the column."""
    if is_missing:
        raise DataUnfit(
            f"column {column} has a missing value",
            required="a value in every row, since the recipe says `missing: refuse`, the default",
            where=f"column {column}, an input of kind {kind}",
            remedy="set `missing` in the recipe, or make the column required in the contract",
        )


def first_missing_column(columns: Sequence[str], is_missing: np.ndarray) -> str:
    """The first of `columns` with a missing value, by the mask `is_missing` (columns, B)."""
    return columns[int(is_missing.any(axis=1).argmax())]


def require_values(column: str, count: int) -> None:
    """Raises DataUnfit if the training split has no value of a column."""
    if count == 0:
        raise DataUnfit(
            f"column {column} has no value in the training split",
            required="at least one value",
            where=f"column {column}",
            remedy="drop the column from the recipe's features.inputs, or correct the data at its source",
        )
