"""What is counted of the training part: figures of numbers, and counts of names.

Tallies of parts add up to the tally of the whole, in any order, bit for bit, and travel as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bloomery.models.features.statistics.moments import Moments
from bloomery.models.features.statistics.quantile_sketch import Sketch, empty, moments_of, read_sketch, sketch_of

Name = tuple[int | str | None, ...]  # a category, or a category with a label and a fold


@dataclass(frozen=True)
class Figures:
    """Exact moments of numbers, and where quantiles are wanted their sketch, least and largest value."""

    moments: Moments
    least: float | None = None
    largest: float | None = None
    sketch: Sketch | None = None

    def __add__(self, other: Figures) -> Figures:
        least = [value for value in (self.least, other.least) if value is not None]
        largest = [value for value in (self.largest, other.largest) if value is not None]
        sketches = [one for one in (self.sketch, other.sketch) if one is not None]
        return Figures(
            moments=self.moments + other.moments,
            least=min(least, default=None),
            largest=max(largest, default=None),
            sketch=sum(sketches[1:], sketches[0]) if sketches else None,
        )

    def as_plain(self) -> dict[str, Any]:
        return {
            "moments": self.moments.model_dump(),
            "least": self.least,
            "largest": self.largest,
            "sketch": None if self.sketch is None else self.sketch.as_text(),
        }


def figures_of(values: np.ndarray, *, with_quantiles: bool = False) -> Figures:
    """The figures of finite float64 `values` of any shape."""
    sketch = sketch_of(values) if values.size else empty()
    if values.size == 0:
        return Figures(moments=Moments(), sketch=sketch if with_quantiles else None)
    return Figures(
        moments=moments_of(sketch),
        least=float(values.min()) + 0.0,
        largest=float(values.max()) + 0.0,
        sketch=sketch if with_quantiles else None,
    )


@dataclass(frozen=True)
class Counts:
    """How often each name was seen. Above `limit` different names nothing is counted any more: `is_full`."""

    limit: int
    counts: dict[Name, int] = field(default_factory=dict)
    is_full: bool = False

    def __add__(self, other: Counts) -> Counts:
        if self.is_full or other.is_full:
            return Counts(self.limit, is_full=True)
        together = dict(self.counts)
        for name, count in other.counts.items():
            together[name] = together.get(name, 0) + count
        return limited(together, self.limit)

    def as_plain(self) -> dict[str, Any]:
        counts = [[*name, count] for name, count in self.counts.items()]
        return {"limit": self.limit, "counts": counts, "is_full": self.is_full}


Tally = Figures | Counts


def limited(counts: dict[Name, int], limit: int) -> Counts:
    """`counts` as they are, or none of them if they are too many."""
    return Counts(limit, is_full=True) if len(counts) > limit else Counts(limit, counts)


def read_tally(plain: dict[str, Any]) -> Tally:
    """The tally that `as_plain` wrote."""
    if "counts" in plain:
        counts = {tuple(name): count for *name, count in plain["counts"]}
        return Counts(plain["limit"], counts, plain["is_full"])
    sketch = plain["sketch"]
    return Figures(
        moments=Moments(**plain["moments"]),
        least=plain["least"],
        largest=plain["largest"],
        sketch=None if sketch is None else read_sketch(sketch),
    )
