"""Feature groups: values of an encoded row that are explained as one, such as table columns, patches or tokens.

Shapes: B rows, G feature groups, C channels, H height, W width, T steps, F values of a step; a row has the shape of its
layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.input_config import CategoryInput, Input, SequenceInput, SeriesInput
from bloomery.models.features.kinds.category import FittedCategories
from bloomery.models.features.part_encoders import part_encoders

_MAX_PATCHES = 8  # of an image, along each side
_MAX_SEQUENCE_GROUPS = 128


class FeatureGroups(NamedTuple):
    """The group of each position of a row: `group_of` int64 of the layout's shape, from 0.

    `grid` is (G,) for columns, tokens and mixed rows, (rows, columns) for patches, (blocks of steps, columns) for
    sequences. `columns` names the last axis for tables and sequences. Mixed rows have the groups of all `parts` one
    after the other; behind those of an optional part follows one for its flag.
    """

    group_of: np.ndarray
    grid: tuple[int, ...]
    columns: tuple[str, ...] = ()
    parts: tuple[FeatureGroups, ...] = ()

    @property
    def num_groups(self) -> int:
        return math.prod(self.grid)


def group_features(layout: Layout, columns: tuple[str, ...] = ()) -> FeatureGroups:
    """The groups for rows of `layout`. `columns` has the column name of each value of a row or of a step."""
    match layout.kind:
        case "image":
            return _group_patches(layout.shape)
        case "sequence":
            return _group_steps(layout, columns)
        case "tokens":
            return FeatureGroups(np.arange(layout.shape[0]), layout.shape)
        case "mixed":
            return join_groups(layout, [group_features(part.layout) for part in layout.parts])
    names = columns or tuple(f"value {position}" for position in range(layout.num_values))
    distinct = tuple(dict.fromkeys(names))
    index = np.array([distinct.index(name) for name in names], np.int64)
    return FeatureGroups(index.reshape(layout.shape), (len(distinct),), distinct)


def group_encoded_row(encoder: Encoder) -> FeatureGroups:
    """The groups for rows of `encoder`, with the names of its columns."""
    if encoder.layout.kind != "mixed":
        return group_features(encoder.layout, column_names(encoder))
    return join_groups(encoder.layout, [group_encoded_row(part) for part in part_encoders(encoder)])


def join_groups(layout: Layout, parts: Sequence[FeatureGroups]) -> FeatureGroups:
    """The groups of mixed rows, from those of their parts."""
    group_of = np.zeros(layout.shape, np.int64)
    num_groups = 0
    for groups, (part, start, stop) in zip(parts, layout.part_slices, strict=True):
        group_of[start:stop] = num_groups + groups.group_of.reshape(-1)
        num_groups += groups.num_groups
        if part.is_optional:
            group_of[stop] = num_groups
            num_groups += 1
    return FeatureGroups(group_of, (num_groups,), parts=tuple(parts))


def _group_patches(shape: tuple[int, ...]) -> FeatureGroups:
    """At most 8 x 8 patches, each over all channels."""
    _, height, width = shape
    patch_height, patch_width = patch_size(shape)
    grid = (math.ceil(height / patch_height), math.ceil(width / patch_width))
    index_HW = np.arange(height)[:, None] // patch_height * grid[1] + np.arange(width) // patch_width
    return FeatureGroups(np.broadcast_to(index_HW, shape).copy(), grid)


def patch_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a patch, in pixels."""
    return math.ceil(shape[1] / _MAX_PATCHES), math.ceil(shape[2] / _MAX_PATCHES)


def _group_steps(layout: Layout, columns: tuple[str, ...]) -> FeatureGroups:
    """Each column of each step, or of a block of steps if there are many. The padding flag joins the last value."""
    num_steps, num_values = layout.shape
    width = max(num_values - layout.is_padded, 1)
    names = columns or tuple(f"value {position}" for position in range(width))
    distinct = tuple(dict.fromkeys(names[:width]))
    block_length = math.ceil(num_steps * len(distinct) / _MAX_SEQUENCE_GROUPS)
    index_F = [distinct.index(name) for name in names[:width]]
    index_F += [index_F[-1]] * (num_values - width)
    index_TF = np.arange(num_steps)[:, None] // block_length * len(distinct) + np.array(index_F, np.int64)
    return FeatureGroups(index_TF, (math.ceil(num_steps / block_length), len(distinct)), distinct)


def sum_by_group(weights: np.ndarray, groups: FeatureGroups) -> np.ndarray:
    """The sums of the weights (B, ...) over each group: float64 (B, *grid)."""
    num_rows, num_groups = len(weights), math.prod(groups.grid)
    positions = np.arange(num_rows)[:, None] * num_groups + groups.group_of.reshape(1, -1)
    flat = np.bincount(positions.ravel(), weights.reshape(num_rows, -1).ravel(), num_rows * num_groups)
    return flat.reshape(num_rows, *groups.grid)


def column_names(encoder: Encoder) -> tuple[str, ...]:
    """The raw column of each value of a flat row, or of each value of a step; empty for other rows."""
    if encoder.layout.kind == "flat":
        inputs = zip(encoder.features.inputs, encoder.fitted, encoder.shapes, strict=True)
        return tuple(name for source, fitted, shape in inputs for name in _input_columns(source, fitted, shape[0]))
    if encoder.layout.kind == "sequence":
        return _step_columns(encoder.features.inputs[0], encoder.layout.shape[1] - encoder.layout.is_padded)
    return ()


def _input_columns(source: Input, fitted: object, width: int) -> list[str]:
    """The columns of a flat input, each once per value."""
    if source.kind in ("number", "boolean"):
        return list(source.columns) * (width // len(source.columns))  # the indicators follow all values
    widths = [width // len(source.columns)] * len(source.columns)
    if isinstance(fitted, FittedCategories) and isinstance(source, CategoryInput) and source.encoding == "one_hot":
        widths = [len(column.names) + 2 for column in fitted.columns]
    return [name for name, count in zip(source.columns, widths, strict=True) for _ in range(count)]


def _step_columns(source: Input, width: int) -> tuple[str, ...]:
    """The columns of a step's values; for wide columns, such as x1, x2, their common stem."""
    if isinstance(source, SeriesInput):
        return source.columns * (width // len(source.columns))  # the indicators follow all values
    if isinstance(source, SequenceInput) and source.steps:
        stems = [{name.rstrip("0123456789").rstrip("_") for name in names} for names in zip(*source.steps, strict=True)]
        if all(len(stem) == 1 for stem in stems) and len(set.union(*stems)) == width:
            return tuple(stem for (stem,) in stems)
    return tuple(f"value {position}" for position in range(width))
