"""Which of several points no other beats. All figures are costs: less is better."""

from __future__ import annotations

from collections.abc import Sequence

Costs = Sequence[float]


def dominates(one: Costs, other: Costs) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def pareto_front(points: Sequence[Costs]) -> list[int]:
    """The positions of the points that no other point beats, in their order.

    Source: Pareto 1906, "Manuale di economia politica"; Kung, Luccio & Preparata 1975, "On finding the maxima of a set
    of vectors".
    """
    return [place for place, point in enumerate(points) if not any(dominates(other, point) for other in points)]
