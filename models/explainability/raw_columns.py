"""Maps SHAP values of feature groups back to raw columns, and to locations within a column, for the endpoint's clients.

Shapes: G feature groups of a row, N raw columns, T steps or tokens, F values of a step; a row has the shape of its
layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from bloomery.data_contracts.records.tensor_layout import Layout, Part
from bloomery.models.explainability.feature_groups import (
    FeatureGroups,
    column_names,
    group_encoded_row,
    join_groups,
    patch_size,
)
from bloomery.models.explainability.token_text import token_texts
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.input_config import AudioInput, ImageInput, SequenceInput, SeriesInput
from bloomery.models.features.part_encoders import part_encoders

_MAX_TEXT_PIECES = 64


def group_row(encoder: Encoder, x: np.ndarray) -> FeatureGroups:
    """The feature groups of the row `x`: as `group_features`, but a long text in pieces of several tokens."""
    if encoder.layout.kind == "mixed":
        places = zip(part_encoders(encoder), _part_values(encoder.layout, x), strict=True)
        return join_groups(encoder.layout, [group_row(part, values) for part, values in places])
    if encoder.layout.kind != "tokens":
        return group_encoded_row(encoder)
    num_tokens = int(np.count_nonzero(x))
    length = max(math.ceil(num_tokens / _MAX_TEXT_PIECES), 1)
    num_pieces = max(math.ceil(num_tokens / length), 1)
    return FeatureGroups(np.minimum(np.arange(len(x)) // length, num_pieces - 1), (num_pieces,))


def _part_values(layout: Layout, x_F: np.ndarray) -> list[np.ndarray]:
    """The values of each part of a mixed row, in the shape of the part's layout."""
    return [x_F[start:stop].reshape(part.layout.shape) for part, start, stop in layout.part_slices]


class _PartGroups(NamedTuple):
    """The groups of one part of a mixed row, with their SHAP values and that of the part's flag, if it has one."""

    encoder: Encoder
    part: Part
    groups: FeatureGroups
    values: np.ndarray
    flag_value: float


def _split_groups(encoder: Encoder, groups: FeatureGroups, values_G: np.ndarray) -> Iterator[_PartGroups]:
    start = 0
    for part_encoder, part, part_groups in zip(part_encoders(encoder), encoder.layout.parts, groups.parts, strict=True):
        stop = start + part_groups.num_groups
        flag_value = float(values_G[stop]) if part.is_optional else 0.0
        yield _PartGroups(part_encoder, part, part_groups, values_G[start:stop], flag_value)
        start = stop + part.is_optional


def sum_by_column(encoder: Encoder, groups: FeatureGroups, values_G: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """The SHAP value of each raw column of the encoded row `x`.

    Columns within one group share its value by their numbers of positions, without the padding of a pair of texts; a
    group that is padding alone, such as that of an absent pair, equally. The value of a part's flag belongs to the
    part's columns.
    """
    columns = encoder.columns
    if groups.parts:
        total = dict.fromkeys(columns, 0.0)
        parts = zip(_split_groups(encoder, groups, values_G), _part_values(encoder.layout, x), strict=True)
        for part, values in parts:
            by_column = sum_by_column(part.encoder, part.groups, part.values, values)
            for name, value in by_column.items():
                total[name] += value + part.flag_value / len(by_column)
        return total
    num_groups = math.prod(groups.grid)
    positions = groups.group_of * len(columns) + _column_index(encoder, x)
    if encoder.layout.separator is not None:
        positions = positions[x != 0]
    shares_GN = np.bincount(positions.ravel(), minlength=num_groups * len(columns)).reshape(num_groups, len(columns))
    shares_GN[~shares_GN.any(axis=1)] = 1
    shares_GN = shares_GN / shares_GN.sum(axis=1, keepdims=True)
    return dict(zip(columns, (values_G @ shares_GN).tolist(), strict=True))


def _column_index(encoder: Encoder, x: np.ndarray) -> np.ndarray:
    """The position among the encoder's columns of each value's column, int64; `x` is the encoded row."""
    source, layout, columns = encoder.features.inputs[0], encoder.layout, encoder.columns
    if layout.kind == "flat":
        return np.array([columns.index(name) for name in column_names(encoder)], np.int64)
    if isinstance(source, SeriesInput):
        index_F = [columns.index(name) for name in column_names(encoder)]
        return np.broadcast_to(np.array(index_F, np.int64), layout.shape)
    if isinstance(source, SequenceInput) and source.steps:
        return np.array([[columns.index(name) for name in step] for step in source.steps], np.int64)
    if layout.separator is not None:  # a pair of texts
        is_separator_T = x == layout.separator
        return np.asarray(np.cumsum(is_separator_T) - is_separator_T > 0, np.int64)
    return np.zeros(layout.shape, np.int64)


def locate_groups(encoder: Encoder, groups: FeatureGroups, values_G: np.ndarray, x: np.ndarray) -> list[dict[str, Any]]:
    """The location within its column and the SHAP value of each group; empty for columns with a single value.

    In mixed rows, a location also names its part, and `present` says whether an optional part is there.
    """
    if groups.parts:
        return list(_locate_in_parts(encoder, groups, values_G, x))
    source = encoder.features.inputs[0]
    if encoder.layout.kind == "tokens":
        locations = _locate_texts(encoder, groups, x)
    elif isinstance(source, ImageInput | AudioInput):
        locations = [_locate_patch(encoder, source, *cell) for cell in np.ndindex(groups.grid)]
    elif isinstance(source, SeriesInput) or (isinstance(source, SequenceInput) and not source.steps):
        length = math.ceil(encoder.layout.shape[0] / groups.grid[0])
        locations = [_locate_steps(encoder, groups, length, *cell) for cell in np.ndindex(groups.grid)]
    else:
        return []
    return [
        {**location, "contribution": value}
        for location, value in zip(locations, values_G.tolist(), strict=True)
        if value != 0
    ]


def _locate_in_parts(
    encoder: Encoder, groups: FeatureGroups, values_G: np.ndarray, x: np.ndarray
) -> Iterator[dict[str, Any]]:
    places = zip(_split_groups(encoder, groups, values_G), encoder.layout.part_slices, strict=True)
    for part, (_, start, stop) in places:
        name, values = part.part.name, x[start:stop].reshape(part.part.layout.shape)
        located = locate_groups(part.encoder, part.groups, part.values, values)
        yield from ({"part": name, **location} for location in located)
        if part.flag_value != 0:
            yield {"part": name, "present": bool(x[stop] > 0.5), "contribution": part.flag_value}


def _locate_texts(encoder: Encoder, groups: FeatureGroups, x_T: np.ndarray) -> list[dict[str, Any]]:
    is_token_T = x_T != 0
    texts = [""] * groups.grid[0]
    token_groups = groups.group_of[is_token_T]
    for group, text in zip(token_groups, token_texts(encoder, x_T[is_token_T].astype(int)), strict=True):
        texts[group] += text
    return [{"text": text} for text in texts]


def _locate_patch(encoder: Encoder, source: ImageInput | AudioInput, row: int, column: int) -> dict[str, Any]:
    """The bounds of a patch: pixels of the image as sent, or bands and seconds of a sound."""
    _, height, width = encoder.layout.shape
    patch_height, patch_width = patch_size(encoder.layout.shape)
    top, bottom = row * patch_height, min((row + 1) * patch_height, height)
    left, right = column * patch_width, min((column + 1) * patch_width, width)
    if isinstance(source, AudioInput):
        step_s, length_s = source.frame_seconds
        seconds = [round(left * step_s, 6), round((right - 1) * step_s + length_s, 6)]
        return {"bands": [top, bottom], "seconds": seconds}
    _, sent_height, sent_width = source.shape
    resized = (height, width) if source.steps is None else source.steps.resized_shape(sent_height, sent_width)
    rows = [_locate_edge(edge, height, resized[0], sent_height) for edge in (top, bottom)]
    return {"rows": rows, "columns": [_locate_edge(edge, width, resized[1], sent_width) for edge in (left, right)]}


def _locate_edge(edge: int, size: int, resized: int, sent: int) -> int:
    """The pixel of the image as sent at an edge of the encoded one, the centre of one that was resized first."""
    position = min(max(edge + (resized - size) / 2, 0), resized)
    return round(position * sent / resized)


def _locate_steps(encoder: Encoder, groups: FeatureGroups, length: int, block: int, column: int) -> dict[str, Any]:
    source = encoder.features.inputs[0]
    steps = [block * length, min((block + 1) * length, encoder.layout.shape[0])]
    if isinstance(source, SeriesInput):
        return {"column": groups.columns[column], "steps": steps}
    return {"value": column, "steps": steps}
