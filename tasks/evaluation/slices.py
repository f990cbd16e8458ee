"""Columns of the checked rows beside rows that are known by their key: what figures are told apart by."""

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

_MOST_VALUES = 50  # of one column, each with figures of its own


def read_slice_values(dataset: Dataset, part_keys: np.ndarray | pa.Array, columns: Sequence[str]) -> pa.Table:
    """The values of `columns` in the checked rows with the keys `part_keys`, in their order."""
    names = list(dict.fromkeys((dataset.key, *columns)))
    wanted = part_keys if isinstance(part_keys, pa.Array) else pa.array(part_keys)
    found = []
    for batch in read_batches(settings().path(dataset.valid_rows.uri), names):
        keys = batch[dataset.key]
        found.append(batch.filter(pc.is_in(keys, wanted.cast(keys.type))))
    rows = pa.Table.from_batches(found)
    return rows.take(pc.index_in(wanted.cast(rows[dataset.key].type), rows[dataset.key])).select(list(columns))


def find_slices(values: pa.ChunkedArray) -> list[tuple[str, np.ndarray]]:
    """Each value of a column, as text, and which rows (bool) have it; the most frequent ones where there are many.

    Figures of many values are cut at their quartiles.
    """
    is_figure = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    if is_figure and len(pc.unique(values)) > _MOST_VALUES:
        return _quarters(values.cast(pa.float64()).to_numpy())
    counted = sorted(pc.value_counts(values).to_pylist(), key=lambda one: (-one["counts"], str(one["values"])))
    return [(str(one["values"]), _equals(values, one["values"])) for one in counted[:_MOST_VALUES]]


def _equals(values: pa.ChunkedArray, value: object) -> np.ndarray:
    if value is None:
        return np.asarray(pc.is_null(values).to_numpy(), dtype=bool)
    return np.asarray(pc.fill_null(pc.equal(values, pa.scalar(value, values.type)), False).to_numpy(), dtype=bool)


def _quarters(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Figures in four ranges of about as many rows, and those that are not there."""
    is_there = np.isfinite(values)
    edges = np.unique(np.quantile(values[is_there], [0, 0.25, 0.5, 0.75, 1]))
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    found = [
        (f"{low:g} to {high:g}", is_there & (places == place))
        for place, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    return found if is_there.all() else [*found, ("None", ~is_there)]


def bootstrap_order(dataset: Dataset, features: Features, part_keys: np.ndarray) -> np.ndarray:
    """The order, as positions, in which rows that may depend on each other are near each other.

    Rows of a series or of a group stand together, in time where the recipe names a time; other rows lie by their key.
    """
    series, split = features.series, features.split
    if series is not None:
        stated = [series.group, series.time]
    else:
        stated = [split.column if split.by in ("group", "time") else None, split.in_time]
    columns = list(dict.fromkeys(name for name in stated if name is not None))
    if not columns:
        return np.arange(len(part_keys))
    rows = read_slice_values(dataset, part_keys, columns)
    return np.asarray(pc.sort_indices(rows, [(name, "ascending") for name in columns]).to_numpy())
