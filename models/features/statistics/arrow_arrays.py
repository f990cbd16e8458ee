"""Arrow columns as numpy arrays, whatever their chunks, offsets and nulls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.requests.columnar_rows import CellRows

Rows: TypeAlias = pa.Table | pa.RecordBatch | CellRows
FLOAT32_MAX = float(np.finfo(np.float32).max)


def combine_chunks(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """All chunks as one array, without a copy where there is one chunk."""
    if not isinstance(values, pa.ChunkedArray):
        return values
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def to_floats(column: pa.Array) -> np.ndarray:
    """Float64 (B,), NaN where there is no value; a whole number beyond 2**53 is rounded to the nearest float64."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)


def number_matrix(rows: Rows, columns: Sequence[str]) -> np.ndarray:
    """Float64 (columns, B), NaN where there is no value."""
    if isinstance(rows, CellRows) and (found := rows.numbers(columns)) is not None:
        return found
    values = np.empty((len(columns), rows.num_rows))
    for position, column in enumerate(columns):
        values[position] = to_floats(combine_chunks(rows[column]))
    return values


def to_integers(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Int64 (B,) with 0 where there is no value, and where that is (bool; None: nowhere)."""
    missing = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    whole = column if pa.types.is_int64(column.type) else column.cast(pa.int64())
    return (whole if missing is None else whole.fill_null(0)).to_numpy(zero_copy_only=False), missing


def column_elements(rows: Rows, column: str) -> np.ndarray:
    """The elements of all lists of a column, one after the other."""
    if isinstance(rows, CellRows) and (found := rows.elements(column)) is not None:
        return found
    return list_elements(rows[column])


def list_elements(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The elements of all lists, one after the other."""
    flat = combine_chunks(pc.list_flatten(column))
    if flat.null_count or column.null_count:
        raise ValueError("a list, or one of its elements, is null")
    return flat.to_numpy(zero_copy_only=False)


def refuse_missing(column: str, is_missing: bool, kind: str) -> None:
    """Raises DataUnfit if a value is missing where the recipe refuses it."""
    if is_missing:
        raise DataUnfit(
            f"column {column} has a missing value",
            required="a value in every row, since the recipe says `missing: refuse` (or says nothing)",
            where=f"column {column}, an input of kind {kind}",
            remedy="say in the recipe what stands for a missing value, or make the column required in the contract",
        )


def first_missing_column(columns: Sequence[str], is_missing: np.ndarray) -> str:
    """The first of `columns` that has a missing value, of which (columns, B) says where they are."""
    return columns[int(is_missing.any(axis=1).argmax())]


def require_values(column: str, count: int) -> None:
    """Raises DataUnfit if the training part has no value of a column to learn from."""
    if count == 0:
        raise DataUnfit(
            f"column {column} has no value in the training part",
            required="at least one value to learn from",
            where=f"column {column}",
            remedy="drop the column from the recipe's features.inputs, or mend the data at its source",
        )
