"""Slices: rows grouped by the values of a column, which scores are reported and limited by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.records.records import Dataset
from bloomery.models.features.config import Features
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.settings import settings

_MAX_VALUES = 50  # slices of one column


def read_slice_values(dataset: Dataset, keys: np.ndarray | pa.Array, columns: Sequence[str]) -> pa.Table:
    """Reads the values of `columns` in the valid rows with the given keys, in the order of the keys."""
    names = list(dict.fromkeys((dataset.key, *columns)))
    key_array = keys if isinstance(keys, pa.Array) else pa.array(keys)
    batches = []
    for batch in read_batches(settings().path(dataset.valid_rows.uri), names):
        batch_keys = batch[dataset.key]
        batches.append(batch.filter(pc.is_in(batch_keys, key_array.cast(batch_keys.type))))
    rows = pa.Table.from_batches(batches)
    return rows.take(pc.index_in(key_array.cast(rows[dataset.key].type), rows[dataset.key])).select(list(columns))


def find_slices(values: pa.ChunkedArray) -> list[tuple[str, np.ndarray]]:
    """Returns the most frequent values of a column, at most `_MAX_VALUES`, as text with a mask of the rows (bool).

    Numeric columns with more values are split at their quartiles.
    """
    is_numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if is_numeric and len(pc.unique(values)) > _MAX_VALUES:
        return _split_at_quartiles(values.cast(pa.float64()).to_numpy())
    counts = sorted(pc.value_counts(values).to_pylist(), key=lambda count: (-count["counts"], str(count["values"])))
    return [(str(count["values"]), _mask_equal(values, count["values"])) for count in counts[:_MAX_VALUES]]


def _mask_equal(values: pa.ChunkedArray, value: object) -> np.ndarray:
    if value is None:
        return np.asarray(pc.is_null(values).to_numpy(), dtype=bool)
    return np.asarray(pc.fill_null(pc.equal(values, pa.scalar(value, values.type)), False).to_numpy(), dtype=bool)


def _split_at_quartiles(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns four ranges with about as many rows each, and the rows without a number."""
    is_finite = np.isfinite(values)
    edges = np.unique(np.quantile(values[is_finite], [0, 0.25, 0.5, 0.75, 1]))
    ranges = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    slices = [
        (f"{low:g} to {high:g}", is_finite & (ranges == number))
        for number, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    return slices if is_finite.all() else [*slices, ("None", ~is_finite)]


def bootstrap_order(dataset: Dataset, features: Features, keys: np.ndarray) -> np.ndarray:
    """Positions of the rows in an order that keeps dependent rows near each other, for a block bootstrap.

    Rows of a series or of a group are adjacent, ordered in time where the recipe names a time; other rows stay in the
    order of their keys.
    """
    series, split = features.series, features.split
    names: list[str | None]
    if series is not None:
        names = [*series.groups, series.time]
    else:
        names = [split.column if split.by in ("group", "time") else None, split.in_time]
    columns = list(dict.fromkeys(name for name in names if name is not None))
    if not columns:
        return np.arange(len(keys))
    positions = [str(position) for position in range(len(columns))]  # Arrow parses a name that begins with a point
    rows = read_slice_values(dataset, keys, columns).rename_columns(positions)
    return np.asarray(pc.sort_indices(rows, [(position, "ascending") for position in positions]).to_numpy())
