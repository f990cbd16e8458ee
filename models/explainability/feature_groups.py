"""What of an encoded row is weighed as one thing: columns of a table, patches, steps of a column, tokens.

Shapes: B rows, U units, C channels, H height, W width, T steps, F values of a step; a row has the shape of its layout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.input_config import CategoryInput, Input, SequenceInput, SeriesInput
from bloomery.models.features.kinds.category import FittedCategories

_PATCHES = 8  # of an image, at most, along each side
_MOST_UNITS = 128  # of a sequence


class FeatureGroups(NamedTuple):
    """Which unit each position of a row belongs to: `of` int64 with the layout's shape, from 0.

    Units lie in a grid: (U,) for columns and tokens, (rows, columns) for patches, (blocks of steps, columns) for
    sequences. `columns` names the last axis of tables and sequences.
    """

    of: np.ndarray
    grid: tuple[int, ...]
    columns: tuple[str, ...] = ()


def group_features(layout: Layout, columns: tuple[str, ...] = ()) -> FeatureGroups:
    """The units of rows as `layout` has them. `columns` has the column's name of each value of a row or of a step."""
    match layout.kind:
        case "image":
            return _patches(layout.shape)
        case "sequence":
            return _blocks(layout, columns)
        case "tokens":
            return FeatureGroups(np.arange(layout.shape[0]), layout.shape)
    names = columns or tuple(f"value {position}" for position in range(layout.num_values))
    known = tuple(dict.fromkeys(names))
    of = np.array([known.index(name) for name in names], np.int64)
    return FeatureGroups(of.reshape(layout.shape), (len(known),), known)


def _patches(shape: tuple[int, ...]) -> FeatureGroups:
    """At most 8 x 8 patches, each over all channels."""
    _, height, width = shape
    tall, wide = patch_size(shape)
    grid = (math.ceil(height / tall), math.ceil(width / wide))
    of_HW = np.arange(height)[:, None] // tall * grid[1] + np.arange(width) // wide
    return FeatureGroups(np.broadcast_to(of_HW, shape).copy(), grid)


def patch_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a patch, in pixels."""
    return math.ceil(shape[1] / _PATCHES), math.ceil(shape[2] / _PATCHES)


def _blocks(layout: Layout, columns: tuple[str, ...]) -> FeatureGroups:
    """Each column of each step, or of a few steps if there are many. Whether a step is there belongs to its values."""
    steps, values = layout.shape
    width = max(values - layout.is_padded, 1)
    names = columns or tuple(f"value {position}" for position in range(width))
    known = tuple(dict.fromkeys(names[:width]))
    length = math.ceil(steps * len(known) / _MOST_UNITS)
    of_F = [known.index(name) for name in names[:width]]
    of_F += [of_F[-1]] * (values - width)
    of_TF = np.arange(steps)[:, None] // length * len(known) + np.array(of_F, np.int64)
    return FeatureGroups(of_TF, (math.ceil(steps / length), len(known)), known)


def sum_by_group(weights: np.ndarray, units: FeatureGroups) -> np.ndarray:
    """The weights (B, ...) of positions added up by unit: float64 (B, *grid)."""
    num_rows, num_units = len(weights), math.prod(units.grid)
    places = np.arange(num_rows)[:, None] * num_units + units.of.reshape(1, -1)
    flat = np.bincount(places.ravel(), weights.reshape(num_rows, -1).ravel(), num_rows * num_units)
    return flat.reshape(num_rows, *units.grid)


def column_names(encoder: Encoder) -> tuple[str, ...]:
    """The raw column that each value of a flat row comes from, or each value of a step; none for other rows."""
    if encoder.layout.kind == "flat":
        parts = zip(encoder.features.inputs, encoder.fitted, encoder.shapes, strict=True)
        return tuple(name for source, fitted, shape in parts for name in _names(source, fitted, shape[0]))
    if encoder.layout.kind == "sequence":
        return _step_names(encoder.features.inputs[0], encoder.layout.shape[1] - encoder.layout.is_padded)
    return ()


def _names(source: Input, fitted: object, width: int) -> list[str]:
    """The columns of a flat input, each as often as it has values."""
    if source.kind in ("number", "boolean"):
        return list(source.columns) * (width // len(source.columns))  # the indicators lie behind all values
    widths = [width // len(source.columns)] * len(source.columns)
    if isinstance(fitted, FittedCategories) and isinstance(source, CategoryInput) and source.encoding == "one_hot":
        widths = [len(one.names) + 2 for one in fitted.columns]
    return [name for name, count in zip(source.columns, widths, strict=True) for _ in range(count)]


def _step_names(source: Input, width: int) -> tuple[str, ...]:
    """The columns of a step's values; of wide columns, such as x1, x2, what they share but for their numbers."""
    if isinstance(source, SeriesInput):
        return source.columns * (width // len(source.columns))  # the indicators lie behind all values
    if isinstance(source, SequenceInput) and source.steps:
        stems = [{name.rstrip("0123456789").rstrip("_") for name in names} for names in zip(*source.steps, strict=True)]
        if all(len(stem) == 1 for stem in stems) and len(set.union(*stems)) == width:
            return tuple(stem for (stem,) in stems)
    return tuple(f"value {position}" for position in range(width))
