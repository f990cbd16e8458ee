"""Columns of numbers: clipped, transformed, filled, scaled.

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
_KNOT_SCALE = 0.25  # knots are compared at a quarter of their size, so that their differences stay finite


class FittedColumn(Document):
    """What was learnt of one column: value -> (value - centre) / divisor, or the level between two knots."""

    fill: float
    low: float | None
    high: float | None
    centre: float = 0.0
    divisor: float = 1.0
    knots: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()


class _Constants(NamedTuple):
    """The figures of all columns as float64 (C, 1)."""

    fill: np.ndarray
    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray
    divisor: np.ndarray
    knots: list[tuple[int, np.ndarray, np.ndarray]]  # with the position of their column


class FittedNumbers(Document):
    """What was learnt of an input of kind number, column by column."""

    kind: Literal["number"]
    columns: tuple[FittedColumn, ...]

    @cached_property
    def constants(self) -> _Constants:
        def stacked(values: list[float]) -> np.ndarray:
            return np.array(values, np.float64)[:, None]

        return _Constants(
            fill=stacked([one.fill for one in self.columns]),
            low=stacked([-np.inf if one.low is None else one.low for one in self.columns]),
            high=stacked([np.inf if one.high is None else one.high for one in self.columns]),
            centre=stacked([one.centre for one in self.columns]),
            divisor=stacked([one.divisor for one in self.columns]),
            knots=[
                (position, np.array(one.knots) * _KNOT_SCALE, np.array(one.levels))
                for position, one in enumerate(self.columns)
                if one.knots
            ],
        )


def partial_fit(source: NumberInput, features: Features, rows: Rows) -> tuple[NumericStatistics, ...]:
    """The figures of each column's present values, after the clipping to stated limits and the logarithm."""
    found = []
    for column in source.columns:
        values = to_floats(combine_chunks(rows[column]))
        present = values[~np.isnan(values)]
        found.append(numeric_statistics(_clip_and_transform(source, present), with_quantiles=source.needs_quantiles))
    return tuple(found)


def _clip_and_transform(source: NumberInput, values: np.ndarray) -> np.ndarray:
    """`values` clipped to stated limits and on the scale of logarithms, if it is asked for, in place."""
    if source.clip is not None and source.clip.low is not None:
        np.maximum(values, source.clip.low, out=values)
    if source.clip is not None and source.clip.high is not None:
        np.minimum(values, source.clip.high, out=values)
    if source.transform == "log":
        np.copysign(np.log1p(np.abs(values)), values, out=values)
    return values


def fit(source: NumberInput, statistics: tuple[NumericStatistics, ...], classes: Classes) -> FittedNumbers:
    """Raises DataUnfit where a column has no value at all."""
    fits = [_fit_column(source, column, one) for column, one in zip(source.columns, statistics, strict=True)]
    return FittedNumbers(kind="number", columns=tuple(fits))


def _fit_column(source: NumberInput, column: str, figures: NumericStatistics) -> FittedColumn:
    require_values(column, figures.moments.count)
    low, high, moments = None, None, figures.moments
    sketch = figures.sketch
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
    elif source.scale == "min_max" and figures.minimum is not None and figures.maximum is not None:
        centre = _clip_value(figures.minimum, low, high)
        divisor = _spread(centre, _clip_value(figures.maximum, low, high))
    knots, levels = _quantile_knots(source, sketch) if sketch is not None else ((), ())
    return fitted.model_copy(
        update={"fill": fill, "centre": centre, "divisor": divisor, "knots": knots, "levels": levels}
    )


def _clip_value(value: float, low: float | None, high: float | None) -> float:
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


def _spread(low: float, high: float) -> float:
    """From `low` to `high`, finite, and 1 where they are one."""
    return min(high - low, float(np.finfo(np.float64).max)) or 1.0


def _quantile_knots(source: NumberInput, sketch: QuantileSketch) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values, ascending, and the share of the training part below each, in the middle of its equals.

    For `quantile_normal` the levels are the normal scores of these shares.
    """
    if not source.transform.startswith("quantile"):
        return (), ()
    values, before = cumulative_counts(sketch)
    middle = (before + np.append(before[1:], sketch.count)) / (2 * sketch.count)
    if len(values) > _MAX_KNOTS:
        wanted = np.searchsorted(middle, np.linspace(0, 1, _MAX_KNOTS)).clip(0, len(values) - 1)
        kept = np.unique(np.concatenate([[0], wanted, [len(values) - 1]]))
        values, middle = values[kept], middle[kept]
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
    """Fill `out` float32 (B, C), or (B, 2 C) with the indicators behind; every value is finite."""
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
