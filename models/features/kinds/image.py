"""Image inputs: an array column of pixels, resized and scaled.

Shapes: B rows, C channels, H height, W width.
"""

from __future__ import annotations

import math
from functools import cache, cached_property
from typing import Literal

import numpy as np

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.checkpoint_images import apply_steps
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import ImageInput
from bloomery.models.features.statistics.arrow_arrays import FLOAT32_MAX, Rows, column_elements, require_values
from bloomery.models.features.statistics.column_counts import NumericStatistics, numeric_statistics
from bloomery.models.features.statistics.moments import byte_moments


class FittedImage(Document):
    """A pixel becomes (pixel - mean) / scale, with a mean and a scale per channel."""

    kind: Literal["image"]
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @cached_property
    def constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale as float64 (C, 1, 1)."""
        return np.array(self.mean)[:, None, None], np.array(self.scale)[:, None, None]

    @cached_property
    def short_constants(self) -> tuple[np.ndarray, np.ndarray]:
        """The same as float32."""
        mean, scale = self.constants
        return mean.astype(np.float32), scale.astype(np.float32)


def partial_fit(source: ImageInput, features: Features, rows: Rows) -> tuple[NumericStatistics, ...]:
    """The statistics of the resized pixels, of all together or per channel; none if a checkpoint has them."""
    if source.steps is not None:
        return ()
    if source.normalise not in ("standard", "per_channel"):
        return ()
    x_BCHW = _read_pixels(source, rows)
    channels = [x_BCHW] if source.normalise == "standard" else [x_BCHW[:, c] for c in range(x_BCHW.shape[1])]
    if x_BCHW.dtype == np.uint8:
        return tuple(NumericStatistics(byte_moments(channel)) for channel in channels)
    return tuple(numeric_statistics(np.asarray(channel, np.float64)) for channel in channels)


def fit(source: ImageInput, statistics: tuple[NumericStatistics, ...], classes: Classes) -> FittedImage:
    """Raises DataUnfit if there are no pixels."""
    num_channels = source.shape[0]
    if source.steps is not None:
        return FittedImage(kind="image", mean=(), scale=())
    if source.preprocessing is not None:
        raise ValueError("the steps of a checkpoint are set when the recipe is read")
    if not statistics:
        scale = source.brightest if source.normalise == "unit" else 1.0
        return FittedImage(kind="image", mean=(0.0,) * num_channels, scale=(scale,) * num_channels)
    require_values(source.column, min(stats.moments.count for stats in statistics))
    times = num_channels // len(statistics)
    return FittedImage(
        kind="image",
        mean=tuple(stats.moments.mean() for stats in statistics) * times,
        scale=tuple(stats.moments.deviation() for stats in statistics) * times,
    )


def shape(source: ImageInput, fitted: FittedImage) -> tuple[int, ...]:
    return source.input_shape


def transform_into(
    source: ImageInput, fitted: FittedImage, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out` float32 (B, C, H, W); every value is finite."""
    x_BCHW = _read_pixels(source, rows)
    if source.steps is not None:
        apply_steps(source.steps, _require_bytes(source, x_BCHW), out)
        return
    if x_BCHW.dtype.kind in "iu":
        mean, scale = fitted.short_constants
        # In float32 for every integer type: Spark widens unsigned integers, which must not change the result.
        np.subtract(x_BCHW, mean, out=out, casting="unsafe", dtype=np.float32)
        out /= scale
        return
    mean, scale = fitted.constants
    with np.errstate(over="ignore"):
        scaled = (x_BCHW.astype(np.float64) - mean) / scale
    np.clip(scaled, -FLOAT32_MAX, FLOAT32_MAX, out=scaled)
    out[:] = scaled


def _read_pixels(source: ImageInput, rows: Rows) -> np.ndarray:
    """The stored pixels (B, C, H, W), or float64 ones of the requested size; the steps of a checkpoint resize later."""
    values = column_elements(rows, source.column)
    if values.size != rows.num_rows * math.prod(source.shape):
        raise DataUnfit(
            f"column {source.column} has {values.size} values in {rows.num_rows} rows",
            required=f"{math.prod(source.shape)} in each row: shape {list(source.shape)}",
            where=f"column {source.column}",
            remedy="correct the shape in the recipe, or the data",
        )
    x_BCHW = values.reshape(rows.num_rows, *source.shape)
    return x_BCHW if source.resize is None or source.steps is not None else resize(x_BCHW, *source.resize)


def _require_bytes(source: ImageInput, x_BCHW: np.ndarray) -> np.ndarray:
    """The pixels as uint8, which Pillow resizes."""
    if x_BCHW.dtype == np.uint8:
        return x_BCHW
    pixels = x_BCHW.astype(np.uint8) if x_BCHW.dtype.kind in "iu" else np.zeros(0, np.uint8)
    if x_BCHW.size and not np.array_equal(pixels, x_BCHW):
        raise DataUnfit(
            f"column {source.column} has pixels from {x_BCHW.min():g} to {x_BCHW.max():g}",
            required="integers from 0 to 255, for the preprocessing of a checkpoint",
            where=f"column {source.column}",
            remedy="limit them in the contract (minimum 0, maximum 255), or leave `preprocessing` out",
        )
    return pixels.reshape(x_BCHW.shape)


def resize(x_BCHW: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes images: float64 (B, C, height, width). Each new pixel is a triangle-weighted mean of old pixels.

    The triangle spans two new pixels when images shrink, and two old ones when they grow (bilinear interpolation).
    """
    x = np.moveaxis(_resample(np.moveaxis(x_BCHW.astype(np.float64), 2, 3), height), 3, 2)
    return _resample(np.ascontiguousarray(x), width)


def _resample(values: np.ndarray, size: int) -> np.ndarray:
    """Resamples `values` (..., old) to (..., size). Terms are added one by one, so the order of the sum is fixed."""
    positions, weights = _triangle_weights(values.shape[-1], size)
    total = np.zeros((*values.shape[:-1], size))
    for position, weight in zip(positions, weights, strict=True):
        total += values[..., position] * weight
    return total


@cache
def _triangle_weights(num_inputs: int, num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The old pixels of each new pixel, int64 (taps, new), and their weights (taps, new), which sum to 1."""
    ratio = num_inputs / num_outputs
    radius = max(ratio, 1.0)
    centre = (np.arange(num_outputs) + 0.5) * ratio
    first = np.floor(centre - radius).astype(np.int64)
    positions = first + np.arange(math.ceil(2 * radius) + 2)[:, None]
    weights = np.maximum(1 - np.abs(positions + 0.5 - centre) / radius, 0)
    weights[(positions < 0) | (positions >= num_inputs)] = 0
    return positions.clip(0, num_inputs - 1), weights / weights.sum(axis=0)
