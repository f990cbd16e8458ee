"""Windows over time series: of each column the last values, oldest first, scaled by the training part's.

Shapes: B rows, T values of a window, C columns.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.compute as pc

from data_contracts.documents import Document
from data_contracts.errors import DataUnfit
from models.config import Classes, Features
from models.features.arrays import FLOAT32_MAX, Rows, one_array, require_values
from models.features.inputs import SeriesInput
from models.features.tallies import Figures, figures_of


class FittedSeries(Document):
    """A value becomes (value - mean) / scale, with a mean and a scale for each column."""

    kind: Literal["series"]
    mean: tuple[float, ...]
    scale: tuple[float, ...]


def tally(source: SeriesInput, features: Features, rows: Rows) -> tuple[Figures, ...]:
    """The figures of each column's values in all windows; a value counts once for each window it stands in."""
    if source.scale == "none":
        return ()
    return tuple(figures_of(_windows(source, column, rows)) for column in source.columns)


def fit(source: SeriesInput, tallies: tuple[Figures, ...], classes: Classes) -> FittedSeries:
    """Raises DataUnfit if there is no window to learn from."""
    num_columns = len(source.columns)
    if not tallies:
        return FittedSeries(kind="series", mean=(0.0,) * num_columns, scale=(1.0,) * num_columns)
    for column, figures in zip(source.columns, tallies, strict=True):
        require_values(column, figures.moments.count)
    return FittedSeries(
        kind="series",
        mean=tuple(figures.moments.mean() for figures in tallies),
        scale=tuple(figures.moments.deviation() for figures in tallies),
    )


def shape(source: SeriesInput, fitted: FittedSeries) -> tuple[int, ...]:
    return source.input_shape


def write(source: SeriesInput, fitted: FittedSeries, rows: Rows, out: np.ndarray, folds: np.ndarray | None) -> None:
    """Fill `out` float32 (B, T, C); every value is finite."""
    for position, (column, mean, scale) in enumerate(zip(source.columns, fitted.mean, fitted.scale, strict=True)):
        with np.errstate(over="ignore"):
            scaled_BT = (_windows(source, column, rows) - mean) / scale
        np.clip(scaled_BT, -FLOAT32_MAX, FLOAT32_MAX, out=scaled_BT)
        out[:, :, position] = scaled_BT


def _windows(source: SeriesInput, column: str, rows: Rows) -> np.ndarray:
    """One column's windows as float64 (B, T)."""
    lists = rows[column]
    flat = one_array(pc.list_flatten(lists))
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    if flat.null_count or not pc.all(pc.equal(lengths, source.length)).as_py():
        unequal = pc.unique(lengths.filter(pc.not_equal(lengths, source.length))).to_pylist()
        raise DataUnfit(
            f"column {column} has windows "
            + (f"of {', '.join(map(str, sorted(unequal)[:5]))} values" if unequal else "with a missing value"),
            required=f"{source.length} values in each, none of them missing",
            where=f"column {column}, an input of kind series",
            remedy="send whole windows, oldest value first; in the contract the column must be required",
        )
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float64).reshape(rows.num_rows, source.length)
