"""Explanations of inputs that a checkpoint preprocesses name pixels of the image, and seconds of the sound, as sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.explainability.feature_groups import patch_size
from bloomery.models.explainability.raw_columns import _locate_patch
from bloomery.models.features.checkpoint_audio import AudioSteps
from bloomery.models.features.checkpoint_images import ImageSteps
from bloomery.models.features.input_config import AudioInput, ImageInput


def locate_last_patch(source: ImageInput | AudioInput) -> dict[str, Any]:
    _, height, width = source.input_shape
    encoder = SimpleNamespace(layout=Layout(kind="image", shape=source.input_shape))
    patch_height, patch_width = patch_size(source.input_shape)
    return _locate_patch(cast(Any, encoder), source, (height - 1) // patch_height, (width - 1) // patch_width)


@pytest.mark.parametrize(
    ("size", "crop", "shape", "last_row", "last_column"),
    [
        ((16, 16), None, (3, 32, 64), 32, 64),  # resized alone
        (16, (16, 16), (3, 32, 64), 32, 48),  # 16x32, of which the middle is cropped
        (None, (8, 8), (3, 8, 16), 8, 12),
        (4, (8, 8), (3, 8, 8), 8, 8),  # within a black frame, which is no part of the image
    ],
)
def test_patches_of_images_end_where_the_crop_ends(size, crop, shape, last_row, last_column):
    steps = ImageSteps(size=size, resample=2, crop=crop, factor=None, mean=None, deviation=None, channels=3)
    source = ImageInput(kind="image", column="photo", shape=shape, preprocessing="checkpoint", steps=steps)
    patch = locate_last_patch(source)
    assert (patch["rows"][1], patch["columns"][1]) == (last_row, last_column)


@pytest.mark.parametrize(
    ("steps", "end_s"),
    [
        (AudioSteps(kind="waveform", sample_rate=1000, normalises=True), 0.5),
        (AudioSteps(kind="spectrogram", sample_rate=1000, normalises=True, num_mels=8, frames=3), 0.72),
    ],
)
def test_patches_of_sounds_end_with_their_last_frame(steps, end_s):
    source = AudioInput(
        kind="audio", column="call", sample_rate=1000, duration_s=0.5, preprocessing="checkpoint", steps=steps
    )
    assert locate_last_patch(source)["seconds"][1] == end_s
