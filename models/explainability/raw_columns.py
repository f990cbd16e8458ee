"""What of a served row is weighed as one thing, and how a client is told of it: by raw column, and by piece of one.

Shapes: U units of a row, N raw columns, T steps or tokens, F values of a step; a row has the shape of its layout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bloomery.models.explainability.feature_groups import FeatureGroups, column_names, group_features, patch_size
from bloomery.models.explainability.token_text import token_texts
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.input_config import AudioInput, ImageInput, SequenceInput, SeriesInput

_MOST_PIECES = 64  # of a text


def group_row(encoder: Encoder, x: np.ndarray) -> FeatureGroups:
    """The units of the row `x`: as `group_features` has them, but of a long text pieces of some tokens each."""
    if encoder.layout.kind != "tokens":
        return group_features(encoder.layout, column_names(encoder))
    num_there = int(np.count_nonzero(x))
    length = max(math.ceil(num_there / _MOST_PIECES), 1)
    num_pieces = max(math.ceil(num_there / length), 1)
    return FeatureGroups(np.minimum(np.arange(len(x)) // length, num_pieces - 1), (num_pieces,))


def sum_by_column(encoder: Encoder, units: FeatureGroups, values_U: np.ndarray) -> dict[str, float]:
    """What each raw column adds. Columns that are weighed as one thing have equal shares of it, place by place."""
    columns = encoder.columns
    num_units = math.prod(units.grid)
    places = units.of * len(columns) + _columns_at(encoder)
    shares_UN = np.bincount(places.ravel(), minlength=num_units * len(columns)).reshape(num_units, len(columns))
    shares_UN = shares_UN / shares_UN.sum(axis=1, keepdims=True)
    return dict(zip(columns, (values_U @ shares_UN).tolist(), strict=True))


def _columns_at(encoder: Encoder) -> np.ndarray:
    """The place among the encoder's columns of the one that each value of a row comes from, int64."""
    source, layout, columns = encoder.features.inputs[0], encoder.layout, encoder.columns
    if layout.kind == "flat":
        return np.array([columns.index(name) for name in column_names(encoder)], np.int64)
    if isinstance(source, SeriesInput):
        of_F = [columns.index(name) for name in column_names(encoder)]
        return np.broadcast_to(np.array(of_F, np.int64), layout.shape)
    if isinstance(source, SequenceInput) and source.steps:
        return np.array([[columns.index(name) for name in step] for step in source.steps], np.int64)
    return np.zeros(layout.shape, np.int64)


def locate_groups(encoder: Encoder, units: FeatureGroups, values_U: np.ndarray, x: np.ndarray) -> list[dict[str, Any]]:
    """Where in a column is what adds something, for columns of which there are pieces; none for single values."""
    source = encoder.features.inputs[0]
    if encoder.layout.kind == "tokens":
        places = _texts(encoder, units, x)
    elif isinstance(source, ImageInput | AudioInput):
        places = [_patch(encoder, source, *place) for place in np.ndindex(units.grid)]
    elif isinstance(source, SeriesInput) or (isinstance(source, SequenceInput) and not source.steps):
        length = math.ceil(encoder.layout.shape[0] / units.grid[0])
        places = [_steps(encoder, units, length, *place) for place in np.ndindex(units.grid)]
    else:
        return []
    return [
        {**place, "contribution": value} for place, value in zip(places, values_U.tolist(), strict=True) if value != 0
    ]


def _texts(encoder: Encoder, units: FeatureGroups, x_T: np.ndarray) -> list[dict[str, Any]]:
    there_T = x_T != 0
    texts = [""] * units.grid[0]
    for piece, word in zip(units.of[there_T], token_texts(encoder, x_T[there_T].astype(int)), strict=True):
        texts[piece] += word
    return [{"text": text} for text in texts]


def _patch(encoder: Encoder, source: ImageInput | AudioInput, row: int, column: int) -> dict[str, Any]:
    """From and until where: pixels of the image as it was sent, or bands and seconds of a sound."""
    _, height, width = encoder.layout.shape
    tall, wide = patch_size(encoder.layout.shape)
    top, bottom = row * tall, min((row + 1) * tall, height)
    left, right = column * wide, min((column + 1) * wide, width)
    if isinstance(source, AudioInput):
        seconds = [round(left * source.step_s, 6), round((right - 1) * source.step_s + source.window_s, 6)]
        return {"bands": [top, bottom], "seconds": seconds}
    _, sent_height, sent_width = source.shape
    rows = [round(edge * sent_height / height) for edge in (top, bottom)]
    return {"rows": rows, "columns": [round(edge * sent_width / width) for edge in (left, right)]}


def _steps(encoder: Encoder, units: FeatureGroups, length: int, block: int, place: int) -> dict[str, Any]:
    source = encoder.features.inputs[0]
    steps = [block * length, min((block + 1) * length, encoder.layout.shape[0])]
    if isinstance(source, SeriesInput):
        return {"column": units.columns[place], "steps": steps}
    return {"value": place, "steps": steps}
