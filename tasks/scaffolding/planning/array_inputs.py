"""Plans the inputs of arrays: images, recordings and sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.scaffolding.planning.input_plans import PlannedInput
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.profiling.sequence_planning import image_shape, plan_steps, sequence_options

_MAX_SIDE = 64  # pixels
_MAX_DURATION_S = 4.0
_CHANNELS = {"L": 1, "RGB": 3}


def has_images(profile: SourceProfile, data: DataSource) -> bool:
    """Whether a column has arrays of one length, which are no recordings."""
    arrays = [
        column for column in profile.columns if column.logical_type == "array" and column.element_type == "integer"
    ]
    return data.mono is None and any(column.min_length == column.max_length for column in arrays)


def _square_side(size: int, num_channels: int = 1) -> int | None:
    """Returns the side of a square image of `size` values and at least 4 x 4 pixels; None if there is none."""
    side = math.isqrt(size // num_channels)
    return side if side >= 4 and side * side * num_channels == size else None


def plan_array(
    column: ColumnProfile, profile: SourceProfile, data: DataSource, shape: Sequence[int]
) -> PlannedInput | str:
    """Returns an array as an image or as audio, or why it is neither."""
    if column.media is not None:
        return plan_media(column, profile, data, may_be_absent=False)
    if column.element_type not in ("integer", "number") or column.num_missing:
        return "it does not have an array of numbers in every row"
    if data.kind == "audio" or (data.has_media and data.mode is None):
        return _plan_audio(column, profile, data)
    size = column.min_length or 0
    inner_sizes = (data.flatten or {}).get(column.name, ())
    if not column.max_length:
        return "its arrays have no values"
    steps = plan_steps(size, column.max_length, inner_sizes, are_files=data.unit == "file")
    if steps is not None:
        return PlannedInput(sequence_options(column.name, steps), f"a sequence: {steps.reason}")
    if inner_sizes:
        full_shape, reason = image_shape(size, inner_sizes), "as the arrays are nested"
    elif math.prod(shape) == size and len(shape) in (2, 3):
        full_shape, reason = ([1, *shape] if len(shape) == 2 else [*shape]), "as the source states"
    elif (side := _square_side(size)) is not None:
        full_shape, reason = [1, side, side], f"guessed, since {size} values form a square"
    elif (side := _square_side(size, 3)) is not None:
        full_shape, reason = [3, side, side], f"guessed, since {size} values form a square of three colors"
    else:
        full_shape, reason = [1, 1, size], f"guessed: {size} values in a row"
    options: dict[str, Any] = {"kind": "image", "column": column.name, "shape": full_shape}
    if max(full_shape[1:]) > _MAX_SIDE and min(full_shape[1:]) > 1:
        ratio = _MAX_SIDE / max(full_shape[1:])
        options["resize"] = [max(round(side * ratio), 1) for side in full_shape[1:]]
        reason += "; resized for the model"
    return PlannedInput(options, f"channels, height, width: {reason}")


def _plan_audio(column: ColumnProfile, profile: SourceProfile, data: DataSource) -> PlannedInput:
    rates = profile.column("sample_rate")
    own_rate = data.sample_rate if column.media is None else column.media.sample_rate
    rate = own_rate or (int(rates.value_counts[0][0]) if rates is not None and rates.value_counts else 8000)
    required, num_seen = 0.95 * sum(num for _, num in column.length_counts), 0
    length = column.max_length or 0
    for size, num in column.length_counts:
        num_seen += num
        if num_seen >= required:
            length = size
            break
    duration_s = min(max(math.ceil(length / rate * 100) / 100, 0.1), _MAX_DURATION_S)
    options = {"kind": "audio", "column": column.name, "sample_rate": rate, "duration_s": duration_s}
    return PlannedInput(options, "at least 95% of the recordings are not longer; the others are cut")


def plan_media(column: ColumnProfile, profile: SourceProfile, data: DataSource, *, may_be_absent: bool) -> PlannedInput:
    """Returns the input of decoded files. Beside other inputs, rows may lack a file."""
    assert column.media is not None
    absent = {"missing": "absent"} if column.num_missing and may_be_absent else {}
    if column.media.kind == "audio":
        planned = _plan_audio(column, profile, data)
        return PlannedInput({**planned.options, **absent}, planned.reason)
    assert column.media.mode is not None
    assert column.media.size is not None
    shape = [_CHANNELS[column.media.mode], *column.media.size]
    return PlannedInput({"kind": "image", "column": column.name, "shape": shape, **absent}, "channels, height, width")
