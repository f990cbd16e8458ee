"""Mergeable statistics of columns: moments and quantile sketches of numbers, counts of categories.

Statistics of partitions add up to those of the whole split in any order, bit for bit, and are exchanged as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bloomery.models.features.statistics.moments import Moments
from bloomery.models.features.statistics.quantile_sketch import (
    QuantileSketch,
    build_sketch,
    empty_sketch,
    parse_sketch,
    sketch_moments,
)

CategoryKey = tuple[int | str | None, ...]  # a category; for target encoding a category, a label and a fold


@dataclass(frozen=True)
class NumericStatistics:
    """Exact moments, minimum and maximum of numbers, and optionally a quantile sketch."""

    moments: Moments
    minimum: float | None = None
    maximum: float | None = None
    sketch: QuantileSketch | None = None

    def __add__(self, other: NumericStatistics) -> NumericStatistics:
        minimum = [value for value in (self.minimum, other.minimum) if value is not None]
        maximum = [value for value in (self.maximum, other.maximum) if value is not None]
        sketches = [sketch for sketch in (self.sketch, other.sketch) if sketch is not None]
        return NumericStatistics(
            moments=self.moments + other.moments,
            minimum=min(minimum, default=None),
            maximum=max(maximum, default=None),
            sketch=sum(sketches[1:], sketches[0]) if sketches else None,
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "moments": self.moments.model_dump(),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "sketch": None if self.sketch is None else self.sketch.to_text(),
        }


def numeric_statistics(values: np.ndarray, *, with_quantiles: bool = False) -> NumericStatistics:
    """The statistics of finite float64 `values` of any shape."""
    sketch = build_sketch(values) if values.size else empty_sketch()
    if values.size == 0:
        return NumericStatistics(moments=Moments(), sketch=sketch if with_quantiles else None)
    return NumericStatistics(
        moments=sketch_moments(sketch),
        minimum=float(values.min()) + 0.0,
        maximum=float(values.max()) + 0.0,
        sketch=sketch if with_quantiles else None,
    )


@dataclass(frozen=True)
class CategoryCounts:
    """The count of each category. Beyond `limit` categories, `is_full` is set and the counts are dropped."""

    limit: int
    counts: dict[CategoryKey, int] = field(default_factory=dict)
    is_full: bool = False

    def __add__(self, other: CategoryCounts) -> CategoryCounts:
        if self.is_full or other.is_full:
            return CategoryCounts(self.limit, is_full=True)
        merged = dict(self.counts)
        for name, count in other.counts.items():
            merged[name] = merged.get(name, 0) + count
        return limit_counts(merged, self.limit)

    def as_dict(self) -> dict[str, Any]:
        counts = [[*name, count] for name, count in self.counts.items()]
        return {"limit": self.limit, "counts": counts, "is_full": self.is_full}


ColumnStatistics = NumericStatistics | CategoryCounts


def limit_counts(counts: dict[CategoryKey, int], limit: int) -> CategoryCounts:
    """`counts`, or an empty and full `CategoryCounts` if there are more than `limit`."""
    return CategoryCounts(limit, is_full=True) if len(counts) > limit else CategoryCounts(limit, counts)


def parse_statistics(document: dict[str, Any]) -> ColumnStatistics:
    """Reads what `as_dict` wrote."""
    if "counts" in document:
        counts = {tuple(name): count for *name, count in document["counts"]}
        return CategoryCounts(document["limit"], counts, document["is_full"])
    sketch = document["sketch"]
    return NumericStatistics(
        moments=Moments(**document["moments"]),
        minimum=document["minimum"],
        maximum=document["maximum"],
        sketch=None if sketch is None else parse_sketch(sketch),
    )
