"""Pareto front of points with costs as coordinates: less is better."""

from __future__ import annotations

from collections.abc import Sequence

Costs = Sequence[float]


def dominates(left: Costs, right: Costs) -> bool:
    """Whether `left` is nowhere worse than `right`, and somewhere better."""
    pairs = list(zip(left, right, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto_front(points: Sequence[Costs]) -> list[int]:
    """Positions of the points that no other point dominates, in their order.

    Source: Pareto 1906, "Manuale di economia politica"; Kung, Luccio & Preparata 1975, "On finding the maxima of a set
    of vectors".
    """
    return [position for position, point in enumerate(points) if not any(dominates(rival, point) for rival in points)]
