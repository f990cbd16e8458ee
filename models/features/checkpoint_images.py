"""The image preprocessing of a pretrained checkpoint, as `transformers` does it with Pillow.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from bloomery.data_contracts.documents.documents import Document

Pixels = Annotated[int, Field(ge=1, le=100_000)]


class ImageSteps(Document):
    """What preprocessor_config.json states: resize, crop the centre, rescale, normalise, in this order."""

    size: Annotated[
        tuple[Pixels, Pixels] | Pixels | None, Field(description="height, width; or the length of the shorter edge")
    ]
    resample: Annotated[int, Field(ge=0, le=5, description="the filter, by Pillow's number")]
    crop: Annotated[tuple[Pixels, Pixels] | None, Field(description="height, width; smaller images get a black frame")]
    factor: Annotated[float | None, Field(description="that pixels are multiplied by")]
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    channels: Annotated[int, Field(ge=1, description="of the network; grey images are repeated")]

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the first step."""
        if self.size is None:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        longer = int(self.size * max(height, width) / min(height, width))
        return (longer, self.size) if width <= height else (self.size, longer)

    def output_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape of an encoded image with this stored shape."""
        height, width = self.crop or self.resized_shape(*shape[1:])
        return (self.channels, height, width)


def apply_steps(steps: ImageSteps, x_BCHW: np.ndarray, out: np.ndarray) -> None:
    """Fills `out` float32 (B, C, H, W) from uint8 pixels of one size.

    Source: `PilBackend` of `transformers` (the order of the steps and of rounding).
    """
    for pixels_CHW, encoded in zip(x_BCHW, out, strict=True):
        cropped = _crop_centre(_resize(steps, pixels_CHW), steps.crop)
        scaled = cropped if steps.factor is None else (cropped.astype(np.float64) * steps.factor).astype(np.float32)
        if steps.mean is not None and steps.deviation is not None:
            mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (steps.mean, steps.deviation))
            scaled = (scaled.astype(np.float32) - mean) / deviation
        encoded[:] = scaled  # one grey channel fills all


def _resize(steps: ImageSteps, pixels_CHW: np.ndarray) -> np.ndarray:
    from PIL import Image

    height, width = steps.resized_shape(*pixels_CHW.shape[1:])
    if steps.size is None:
        return pixels_CHW
    pixels = pixels_CHW[0] if len(pixels_CHW) == 1 else np.ascontiguousarray(np.moveaxis(pixels_CHW, 0, 2))
    image = Image.fromarray(pixels)
    resized = np.asarray(image.resize((width, height), resample=Image.Resampling(steps.resample)))
    return resized[None] if resized.ndim == 2 else np.moveaxis(resized, 2, 0)


def _crop_centre(pixels_CHW: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """The centre of that size; a smaller image is placed into the middle of a black one."""
    if size is None:
        return pixels_CHW
    cropped = pixels_CHW
    for axis, length in zip((1, 2), size, strict=True):
        cropped = _crop_axis(cropped, axis, length)
    return cropped


def _crop_axis(pixels_CHW: np.ndarray, axis: int, length: int) -> np.ndarray:
    old = pixels_CHW.shape[axis]
    if length <= old:
        start = (old - length) // 2
        return pixels_CHW.take(range(start, start + length), axis)
    before = math.ceil((length - old) / 2)
    widths = [(0, 0)] * 3
    widths[axis] = (before, length - old - before)
    return np.pad(pixels_CHW, widths)
