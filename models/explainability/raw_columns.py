"""Maps SHAP values of feature groups back to raw columns, and to locations within a column, for the endpoint's clients.

Shapes: G feature groups of a row, N raw columns, T steps or tokens, F values of a step; a row has the shape of its
layout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bloomery.models.explainability.feature_groups import FeatureGroups, column_names, group_features, patch_size
from bloomery.models.explainability.token_text import token_texts
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.input_config import AudioInput, ImageInput, SequenceInput, SeriesInput

_MAX_TEXT_PIECES = 64


def group_row(encoder: Encoder, x: np.ndarray) -> FeatureGroups:
    """The feature groups of the row `x`: as `group_features`, but a long text in pieces of several tokens."""
    if encoder.layout.kind != "tokens":
        return group_features(encoder.layout, column_names(encoder))
    num_tokens = int(np.count_nonzero(x))
    length = max(math.ceil(num_tokens / _MAX_TEXT_PIECES), 1)
    num_pieces = max(math.ceil(num_tokens / length), 1)
    return FeatureGroups(np.minimum(np.arange(len(x)) // length, num_pieces - 1), (num_pieces,))


def sum_by_column(encoder: Encoder, groups: FeatureGroups, values_G: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """The SHAP value of each raw column of the encoded row `x`.

    Columns within one group share its value by their numbers of positions, without the padding of a pair of texts.
    """
    columns = encoder.columns
    num_groups = math.prod(groups.grid)
    positions = groups.group_of * len(columns) + _column_index(encoder, x)
    if encoder.layout.separator is not None:
        positions = positions[x != 0]
    shares_GN = np.bincount(positions.ravel(), minlength=num_groups * len(columns)).reshape(num_groups, len(columns))
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
    """The location within its column and the SHAP value of each group; empty for columns with a single value."""
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
