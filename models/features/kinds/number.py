"""Number inputs: clipped, transformed, filled, scaled.

Shapes: B rows, C columns of one input.
"""

from __future__ import annotations

from functools import cached_property
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import NumberInput
from bloomery.models.features.statistics.arrow_arrays import (
    FLOAT32_MAX,
    Rows,
    combine_chunks,
    first_missing_column,
    number_matrix,
    refuse_missing,
    require_values,
    to_floats,
)
from bloomery.models.features.statistics.column_counts import NumericStatistics, numeric_statistics
from bloomery.models.features.statistics.quantile_sketch import (
    QuantileSketch,
    clipped_moments,
    cumulative_counts,
    quantiles,
)

_MAX_KNOTS = 1000
_KNOT_SCALE = 0.25  # scale of knots in comparisons, so that their differences stay finite


class FittedColumn(Document):
    """The fitted state of one column: value -> (value - centre) / divisor, or interpolation between knots."""

    fill: float
    low: float | None
    high: float | None
    centre: float = 0.0
    divisor: float = 1.0
    knots: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()


class _Constants(NamedTuple):
    """The fitted values of all columns as float64 (C, 1)."""

    fill: np.ndarray
    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray
    divisor: np.ndarray
    knots: list[tuple[int, np.ndarray, np.ndarray]]  # column position, knots, levels


class FittedNumbers(Document):
    """The fitted state of a number input, column by column."""

    kind: Literal["number"]
    columns: tuple[FittedColumn, ...]

    @cached_property
    def constants(self) -> _Constants:
        def stacked(values: list[float]) -> np.ndarray:
            return np.array(values, np.float64)[:, None]

        return _Constants(
            fill=stacked([fitted_column.fill for fitted_column in self.columns]),
            low=stacked(
                [-np.inf if fitted_column.low is None else fitted_column.low for fitted_column in self.columns]
            ),
            high=stacked(
                [np.inf if fitted_column.high is None else fitted_column.high for fitted_column in self.columns]
            ),
            centre=stacked([fitted_column.centre for fitted_column in self.columns]),
            divisor=stacked([fitted_column.divisor for fitted_column in self.columns]),
            knots=[
                (position, np.array(fitted_column.knots) * _KNOT_SCALE, np.array(fitted_column.levels))
                for position, fitted_column in enumerate(self.columns)
                if fitted_column.knots
            ],
        )


def partial_fit(source: NumberInput, features: Features, rows: Rows) -> tuple[NumericStatistics, ...]:
    """The statistics of each column's non-missing values, after clipping to constant limits and the logarithm."""
    statistics = []
    for column in source.columns:
        values = to_floats(combine_chunks(rows[column]))
        present = values[~np.isnan(values)]
        statistics.append(
            numeric_statistics(_clip_and_transform(source, present), with_quantiles=source.needs_quantiles)
        )
    return tuple(statistics)


def _clip_and_transform(source: NumberInput, values: np.ndarray) -> np.ndarray:
    """Clips `values` to constant limits and applies the logarithm, if configured, in place."""
    if source.clip is not None and source.clip.low is not None:
        np.maximum(values, source.clip.low, out=values)
    if source.clip is not None and source.clip.high is not None:
        np.minimum(values, source.clip.high, out=values)
    if source.transform == "log":
        np.copysign(np.log1p(np.abs(values)), values, out=values)
    return values


def fit(source: NumberInput, statistics: tuple[NumericStatistics, ...], classes: Classes) -> FittedNumbers:
    """Raises DataUnfit if a column has no value."""
    fits = [_fit_column(source, column, stats) for column, stats in zip(source.columns, statistics, strict=True)]
    return FittedNumbers(kind="number", columns=tuple(fits))


def _fit_column(source: NumberInput, column: str, stats: NumericStatistics) -> FittedColumn:
    require_values(column, stats.moments.count)
    low, high, moments = None, None, stats.moments
    sketch = stats.sketch
    if source.clip is not None and source.clip.has_quantiles and sketch is not None:
        (low,) = quantiles(sketch, [source.clip.low_quantile]) if source.clip.low_quantile is not None else (None,)
        (high,) = quantiles(sketch, [source.clip.high_quantile]) if source.clip.high_quantile is not None else (None,)
        moments = clipped_moments(sketch, low, high)
    fitted = FittedColumn(fill=0.0, low=low, high=high)
    match source.missing:
        case "mean":
            fill = moments.mean()
        case "median" if sketch is not None:
            (fill,) = quantiles(sketch, [0.5])
        case int() | float():
            fill = float(_clip_and_transform(source, np.array([source.missing], np.float64))[0])
        case _:
            fill = float(_clip_and_transform(source, np.zeros(1))[0])
    centre, divisor = 0.0, 1.0
    if source.scale == "standard":
        centre, divisor = moments.mean(), moments.deviation()
    elif source.scale == "robust" and sketch is not None:
        quarter, centre, three_quarters = (
            _clip_value(value, low, high) for value in quantiles(sketch, [0.25, 0.5, 0.75])
        )
        divisor = _spread(quarter, three_quarters)
    elif source.scale == "min_max" and stats.minimum is not None and stats.maximum is not None:
        centre = _clip_value(stats.minimum, low, high)
        divisor = _spread(centre, _clip_value(stats.maximum, low, high))
    knots, levels = _quantile_knots(source, sketch) if sketch is not None else ((), ())
    return fitted.model_copy(
        update={"fill": fill, "centre": centre, "divisor": divisor, "knots": knots, "levels": levels}
    )


def _clip_value(value: float, low: float | None, high: float | None) -> float:
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


def _spread(low: float, high: float) -> float:
    """`high` - `low`, finite, or 1 if they are equal."""
    return min(high - low, float(np.finfo(np.float64).max)) or 1.0


def _quantile_knots(source: NumberInput, sketch: QuantileSketch) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ascending values, and the fraction of the training split below each (midpoint of ties).

    For `quantile_normal` the levels are the normal scores of these fractions.
    """
    if not source.transform.startswith("quantile"):
        return (), ()
    values, before = cumulative_counts(sketch)
    middle = (before + np.append(before[1:], sketch.count)) / (2 * sketch.count)
    if len(values) > _MAX_KNOTS:
        selected = np.searchsorted(middle, np.linspace(0, 1, _MAX_KNOTS)).clip(0, len(values) - 1)
        selected_knots = np.unique(np.concatenate([[0], selected, [len(values) - 1]]))
        values, middle = values[selected_knots], middle[selected_knots]
    levels = tuple(float(level) for level in middle)
    if source.transform == "quantile_normal":
        normal = NormalDist()
        levels = tuple(normal.inv_cdf(level) for level in levels)
    return tuple(float(value) for value in values), levels


def shape(source: NumberInput, fitted: FittedNumbers) -> tuple[int, ...]:
    return (len(source.columns) * (2 if source.indicator else 1),)


def transform_into(
    source: NumberInput, fitted: FittedNumbers, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out` float32 (B, C), or (B, 2 C) with indicators last; every value is finite."""
    constants = fitted.constants
    values_CB = number_matrix(rows, source.columns)
    missing_CB = np.isnan(values_CB)
    is_missing = bool(missing_CB.any())
    if is_missing and source.missing == "refuse":
        refuse_missing(first_missing_column(source.columns, missing_CB), True, source.kind)
    with np.errstate(over="ignore"):
        _clip_and_transform(source, values_CB)
        if is_missing:
            np.copyto(values_CB, constants.fill, where=missing_CB)
        if source.clip is not None and source.clip.has_quantiles:
            np.maximum(values_CB, constants.low, out=values_CB)
            np.minimum(values_CB, constants.high, out=values_CB)
        if source.scale != "none":
            values_CB -= constants.centre
            values_CB /= constants.divisor
    for position, knots, levels in constants.knots:
        values_CB[position] = np.interp(values_CB[position] * _KNOT_SCALE, knots, levels)
    np.maximum(values_CB, -FLOAT32_MAX, out=values_CB)
    np.minimum(values_CB, FLOAT32_MAX, out=values_CB)
    out[:, : len(source.columns)] = values_CB.T
    if source.indicator:
        out[:, len(source.columns) :] = missing_CB.T
