"""Plans arrays of several lengths, and arrays of arrays, as the steps of a sequence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

MAX_STEPS = 2_000
_MIN_USUAL_SHARE = 0.995  # of the inner arrays have one length; others are quarantined
_CHANNELS = (1, 3, 4)
_MIN_SIDE = 4  # pixels


class SequenceSteps(NamedTuple):
    """The maximum number of steps that a network reads, and the number of values in each."""

    length: int
    width: int
    reason: str


def describe_uneven_arrays(sizes: Sequence[Counter[int]]) -> str | None:
    """Returns why inner arrays are no steps of a sequence; None if they are. `sizes` counts their lengths by depth."""
    for counts in sizes:
        if not counts or counts.most_common(1)[0][0] == 0:
            return "its arrays have no inner arrays with values"
        if counts.most_common(1)[0][1] < _MIN_USUAL_SHARE * counts.total():
            return (
                f"its arrays have inner arrays of {min(counts)} to {max(counts)} values, where one length is required"
            )
    return None


def plan_steps(
    min_length: int, max_length: int, inner_sizes: Sequence[int], *, are_files: bool = False
) -> SequenceSteps | None:
    """Returns the steps of flat arrays with `min_length` to `max_length` values; None where they are rather images.

    Arrays from files of sequences (`are_files`) are never images.
    """
    width = math.prod(inner_sizes)
    if not are_files and is_image_shape(max_length, min_length, inner_sizes):
        return None
    if not inner_sizes and min_length == max_length:
        return None
    num_steps = max_length // width
    length = min(num_steps, MAX_STEPS)
    reason = f"{min_length // width} to {num_steps} steps of {width} value(s)"
    if num_steps > length:
        reason += f"; longer ones are cut to {length}"
    return SequenceSteps(length, width, reason)


def is_image_shape(max_length: int, min_length: int, inner_sizes: Sequence[int]) -> bool:
    """Whether arrays of arrays are images: as high as wide, or channels of them."""
    if not inner_sizes or min_length != max_length:
        return False
    outer = max_length // math.prod(inner_sizes)
    if len(inner_sizes) == 1:
        return outer == inner_sizes[0] >= _MIN_SIDE
    return len(inner_sizes) == 2 and outer in _CHANNELS and min(inner_sizes) >= _MIN_SIDE


def image_shape(length: int, inner_sizes: Sequence[int]) -> list[int]:
    """Returns channels, height and width of arrays of arrays that are images."""
    outer = length // math.prod(inner_sizes)
    return [outer, *inner_sizes] if len(inner_sizes) == 2 else [1, outer, *inner_sizes]


def sequence_options(column: str, steps: SequenceSteps) -> dict[str, Any]:
    """Returns the input as a recipe writes it."""
    options: dict[str, Any] = {"kind": "sequence", "column": column, "length": steps.length}
    return options | ({"width": steps.width} if steps.width > 1 else {})
