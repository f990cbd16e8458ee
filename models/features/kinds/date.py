"""Date inputs: each calendar part as a point on a circle, and the elapsed days.

Shapes: B rows.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import DateInput, DatePart
from bloomery.models.features.statistics.arrow_arrays import (
    Rows,
    combine_chunks,
    refuse_missing,
    require_values,
    to_integers,
)
from bloomery.models.features.statistics.column_counts import NumericStatistics, numeric_statistics

_MICROSECONDS_PER_DAY = 86_400_000_000  # microseconds
_CYCLE_LENGTHS: dict[DatePart, int] = {
    "month": 12,
    "day_of_month": 31,
    "day_of_year": 366,
    "day_of_week": 7,
    "hour": 24,
    "minute": 60,
}


class FittedDates(Document):
    """With `elapsed`, the mean and standard deviation of the days since 1970-01-01, per column."""

    kind: Literal["date"]
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


def _to_microseconds(column: pa.Array) -> tuple[np.ndarray, np.ndarray | None]:
    """Microseconds since 1970-01-01 UTC, int64 (B,), 0 if missing; and the mask of missing values."""
    if pa.types.is_date(column.type):
        days, missing = to_integers(column.cast(pa.date32()).cast(pa.int32()))
        return days * _MICROSECONDS_PER_DAY, missing
    return to_integers(column.cast(pa.timestamp("us", column.type.tz)))


def _to_days(microseconds: np.ndarray) -> np.ndarray:
    return microseconds / np.float64(_MICROSECONDS_PER_DAY)


def partial_fit(source: DateInput, features: Features, rows: Rows) -> tuple[NumericStatistics, ...]:
    """The statistics of the days since 1970-01-01, per column."""
    if not source.elapsed:
        return ()
    statistics = []
    for column in source.columns:
        microseconds, missing = _to_microseconds(combine_chunks(rows[column]))
        statistics.append(numeric_statistics(_to_days(microseconds if missing is None else microseconds[~missing])))
    return tuple(statistics)


def fit(source: DateInput, statistics: tuple[NumericStatistics, ...], classes: Classes) -> FittedDates:
    """Raises DataUnfit if `elapsed` is set and a column has no value."""
    for column, stats in zip(source.columns, statistics, strict=False):
        require_values(column, stats.moments.count)
    return FittedDates(
        kind="date",
        mean=tuple(stats.moments.mean() for stats in statistics),
        scale=tuple(stats.moments.deviation() for stats in statistics),
    )


def shape(source: DateInput, fitted: FittedDates) -> tuple[int, ...]:
    return (len(source.columns) * _column_width(source),)


def _column_width(source: DateInput) -> int:
    return 2 * len(source.parts) + source.elapsed + source.indicator


def transform_into(
    source: DateInput, fitted: FittedDates, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out` float32 (B, F): for each column, sine and cosine of each part, elapsed days, indicator."""
    width = _column_width(source)
    for position, column in enumerate(source.columns):
        microseconds, missing = _to_microseconds(combine_chunks(rows[column]))
        refuse_missing(column, missing is not None and source.missing == "refuse", source.kind)
        column_out = out[:, position * width : (position + 1) * width]
        for part_number, name in enumerate(source.parts):
            column_out[:, 2 * part_number : 2 * part_number + 2] = _circle(_CYCLE_LENGTHS[name])[
                _calendar_part(microseconds, name)
            ]
        if source.elapsed:
            column_out[:, 2 * len(source.parts)] = (_to_days(microseconds) - fitted.mean[position]) / fitted.scale[
                position
            ]
        if missing is not None:
            column_out[missing] = 0
            if source.indicator:
                column_out[:, -1] = missing


@cache
def _circle(num_parts: int) -> np.ndarray:
    """Sine and cosine of `num_parts` equal steps around a circle: float32 (num_parts, 2)."""
    angles = [2 * math.pi * step / num_parts for step in range(num_parts)]
    return np.array([(math.sin(angle), math.cos(angle)) for angle in angles], np.float32)


def _calendar_part(microseconds: np.ndarray, name: DatePart) -> np.ndarray:
    """A calendar part, counted from 0, in UTC; weeks start on Monday."""
    match name:
        case "hour":
            return microseconds // 3_600_000_000 % 24
        case "minute":
            return microseconds // 60_000_000 % 60
        case "day_of_week":
            return (microseconds // _MICROSECONDS_PER_DAY + 3) % 7  # 1970-01-01 was a Thursday
    days = (microseconds // _MICROSECONDS_PER_DAY).astype("datetime64[D]")
    start = days.astype("datetime64[Y]" if name == "day_of_year" else "datetime64[M]")
    if name == "month":
        return start.astype(np.int64) % 12
    return (days - start.astype("datetime64[D]")).astype(np.int64)
