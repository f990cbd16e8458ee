"""Time series inputs: windows of the last values of each column, oldest first, filled and scaled.

Shapes: B rows, T steps of a window, C columns.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.compute as pc

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import SeriesInput
from bloomery.models.features.statistics.arrow_arrays import (
    FLOAT32_MAX,
    Rows,
    combine_chunks,
    require_values,
    to_floats,
)
from bloomery.models.features.statistics.column_counts import NumericStatistics, numeric_statistics


class FittedSeries(Document):
    """A value becomes (value - mean) / scale, with both per column; `fill` replaces missing values."""

    kind: Literal["series"]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    fill: tuple[float, ...] = ()


def partial_fit(source: SeriesInput, features: Features, rows: Rows) -> tuple[NumericStatistics, ...]:
    """The statistics of each column's non-missing values, each counted once per window that contains it."""
    if source.scale == "none" and source.missing not in ("previous", "mean"):
        return ()
    return tuple(numeric_statistics(_drop_missing(_read_windows(source, column, rows))) for column in source.columns)


def _drop_missing(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def fit(source: SeriesInput, statistics: tuple[NumericStatistics, ...], classes: Classes) -> FittedSeries:
    """Raises DataUnfit if there are no values."""
    for column, stats in zip(source.columns, statistics, strict=False):
        require_values(column, stats.moments.count)
    zero_mean, unit_scale = (0.0,) * len(source.columns), (1.0,) * len(source.columns)
    means = tuple(stats.moments.mean() for stats in statistics)
    fill = means if source.missing in ("previous", "mean") else zero_mean
    if source.scale == "none":
        return FittedSeries(kind="series", mean=zero_mean, scale=unit_scale, fill=fill)
    return FittedSeries(
        kind="series", mean=means, scale=tuple(stats.moments.deviation() for stats in statistics), fill=fill
    )


def shape(source: SeriesInput, fitted: FittedSeries) -> tuple[int, ...]:
    return source.input_shape


def transform_into(
    source: SeriesInput, fitted: FittedSeries, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out`, all 0 before: float32 (B, T, C), or (B, T, 2 C) with indicators last; every value is finite."""
    stats = zip(source.columns, fitted.mean, fitted.scale, fitted.fill, strict=True)
    for position, (column, mean, scale, fill) in enumerate(stats):
        values_BT = _read_windows(source, column, rows)
        missing_BT = np.isnan(values_BT)
        if missing_BT.any():
            if source.indicator:
                out[:, :, len(source.columns) + position] = missing_BT
            values_BT = _fill_previous(values_BT, missing_BT) if source.missing == "previous" else values_BT
            values_BT = np.where(np.isnan(values_BT), fill, values_BT)
        with np.errstate(over="ignore"):
            scaled_BT = (values_BT - mean) / scale
        np.clip(scaled_BT, -FLOAT32_MAX, FLOAT32_MAX, out=scaled_BT)
        out[:, :, position] = scaled_BT


def _fill_previous(values_BT: np.ndarray, missing_BT: np.ndarray) -> np.ndarray:
    """Replaces each missing value by the last one before it in its window; leading ones stay missing."""
    positions_BT = np.where(missing_BT, 0, np.arange(values_BT.shape[1]))
    return np.take_along_axis(values_BT, np.maximum.accumulate(positions_BT, axis=1), axis=1)


def _read_windows(source: SeriesInput, column: str, rows: Rows) -> np.ndarray:
    """One column's windows as float64 (B, T), NaN where a value is missing.

    Raises:
        DataUnfit: a window has the wrong length, or a value is missing and the recipe refuses that.
    """
    lists = rows[column]
    flat = combine_chunks(pc.list_flatten(lists))
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    is_lacking = bool(flat.null_count) and source.missing == "refuse"
    if is_lacking or not pc.all(pc.equal(lengths, source.length)).as_py():
        unequal = pc.unique(lengths.filter(pc.not_equal(lengths, source.length))).to_pylist()
        raise DataUnfit(
            f"column {column} has windows "
            + (f"of {', '.join(map(str, sorted(unequal)[:5]))} values" if unequal else "with a missing value"),
            required=f"{source.length} values in each"
            + ("" if source.missing != "refuse" else ", none of them missing"),
            where=f"column {column}, an input of kind series",
            remedy="send complete windows, oldest value first, or set `missing` in the recipe",
        )
    return to_floats(flat).reshape(rows.num_rows, source.length)
