"""The feature encoder: the one definition of how raw rows become numbers.

Spark, training and the served bento all call `encode` here, so what a model is served is what it was trained on. It
needs numpy and pyarrow alone, since it travels into the bento.

Shapes: B rows, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_contracts.documents import Document
from data_contracts.errors import DataUnfit
from models.config import Features, ImageInput

ENCODED = "x"  # the encoded input, a flat list of float32 per row
_FLOAT_BITS = 1126  # the last bit of the smallest float64, written with 53 bits, is 2 ** -1126
CLASS = "y"  # the position of the label among the encoder's classes, int64


class Moments(Document):
    """Count, sum and sum of squares of all values of one input, exactly: they add up alike over batches in any order.

    The sums are whole numbers of units of 2 ** -unit_bits, and of the square of that.
    """

    count: int = 0
    total: int = 0
    total_of_squares: int = 0
    unit_bits: int = 0

    def __add__(self, other: Moments) -> Moments:
        bits = max(self.unit_bits, other.unit_bits)
        mine, theirs = bits - self.unit_bits, bits - other.unit_bits
        return Moments(
            count=self.count + other.count,
            total=(self.total << mine) + (other.total << theirs),
            total_of_squares=(self.total_of_squares << 2 * mine) + (other.total_of_squares << 2 * theirs),
            unit_bits=bits,
        )

    def mean_and_scale(self) -> tuple[float, float]:
        """Mean and standard deviation, rounded once; a standard deviation of zero counts as one."""
        unit = Fraction(1, 1 << self.unit_bits)
        mean = self.total * unit / self.count
        variance = self.total_of_squares * unit * unit / self.count - mean * mean
        return float(mean), math.sqrt(variance) or 1.0


class Encoder(Document):
    """The fitted state: the recipe's features, what was learnt from the training part, and the classes in order."""

    features: Features
    mean: float
    scale: float
    classes: tuple[int | str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that `encode` reads."""
        return tuple(source.column for source in self.features.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.features.inputs[0].shape


def moments(rows: pa.Table | pa.RecordBatch, source: ImageInput) -> Moments:
    """The moments of one input's values in `rows`."""
    values = pc.list_flatten(rows[source.column]).to_numpy(zero_copy_only=False)
    if np.issubdtype(values.dtype, np.integer):
        total, squares = _integer_sums(values)
        return Moments(count=values.size, total=total, total_of_squares=squares)
    total, squares = _float_sums(values.astype(np.float64))
    return Moments(count=values.size, total=total, total_of_squares=squares, unit_bits=_FLOAT_BITS)


def _integer_sums(values: np.ndarray) -> tuple[int, int]:
    """Sum and sum of squares of whole numbers, exactly."""
    if values.size and max(int(values.max()), -int(values.min())) >= 2**31:
        large = values.astype(object)  # Python's own numbers: slow, but they do not overflow
        return int(large.sum()), int((large * large).sum())
    whole = values.astype(np.int64)
    return int(whole.sum()), _sum_per_group(whole * whole, np.zeros(whole.size, np.intp), 1)[0]


def _float_sums(values: np.ndarray) -> tuple[int, int]:
    """Sum and sum of squares of finite float64 values, exactly, in units of 2 ** -_FLOAT_BITS and of its square.

    Each value is a whole number of 53 bits times a power of two; values with one power are added as whole numbers.
    """
    mantissa, exponent = np.frexp(values)
    whole = (mantissa * 2.0**53).astype(np.int64)
    powers, group = np.unique(exponent.astype(np.int64) - 53, return_inverse=True)
    high, low = whole >> 26, whole & (2**26 - 1)
    sums = _sum_per_group(whole, group, len(powers))
    # (high * 2**26 + low) ** 2, in three products that fit into 64 bits
    products = [_sum_per_group(product, group, len(powers)) for product in (high * high, high * low, low * low)]
    shifts = [int(power) + _FLOAT_BITS for power in powers]
    total = sum(one << shift for one, shift in zip(sums, shifts, strict=True))
    squares = sum(((a << 52) + (b << 27) + c) << 2 * shift for a, b, c, shift in zip(*products, shifts, strict=True))
    return total, squares


def _sum_per_group(whole: np.ndarray, group: np.ndarray, num_groups: int) -> list[int]:
    """The exact sum of the int64 values of each group; halves of 31 bits are added, so that no sum overflows."""
    high, low = np.zeros(num_groups, np.int64), np.zeros(num_groups, np.int64)
    np.add.at(high, group, whole >> 31)
    np.add.at(low, group, whole & (2**31 - 1))
    return [(int(a) << 31) + int(b) for a, b in zip(high, low, strict=True)]


def fit(features: Features, parts: Iterable[Moments], classes: Iterable[int | str]) -> Encoder:
    """The encoder for `features`, given the moments and the labels seen in the training part.

    Raises:
        DataUnfit: fewer than two classes, or no value at all.
    """
    whole = sum(parts, Moments())
    known = tuple(sorted(set(classes)))
    if len(known) < 2 or whole.count == 0:
        raise DataUnfit(
            f"the training part has {len(known)} class(es): {', '.join(map(str, known)) or 'none'}",
            required="at least two classes to tell apart",
            where=f"column {features.label}",
            remedy="check that the recipe's `features.label` names the right column and that the data is whole",
        )
    source = features.inputs[0]
    if source.normalise == "none":
        return Encoder(features=features, mean=0.0, scale=1.0, classes=known)
    try:
        mean, scale = whole.mean_and_scale()
    except OverflowError as failure:
        raise DataUnfit(
            f"the values of column {source.column} are too large to be scaled: {failure}",
            required="values whose squares are finite as float64, so below about 1e154",
            where=f"column {source.column}",
            remedy="state a maximum for the column in the contract, or scale it at the source",
        ) from failure
    return Encoder(features=features, mean=mean, scale=scale, classes=known)


def encode(encoder: Encoder, rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """The network's input for raw `rows`.

    Returns:
        float32 of shape (B, C, H, W), where pixels are (value - mean) / scale.
    """
    source = encoder.features.inputs[0]
    values = pc.list_flatten(rows[source.column]).to_numpy(zero_copy_only=False).astype(np.float32)
    x_BCHW = values.reshape(rows.num_rows, *source.shape)
    return (x_BCHW - np.float32(encoder.mean)) / np.float32(encoder.scale)


def encode_rows(encoder: Encoder, rows: pa.Table | pa.RecordBatch) -> pa.RecordBatch:
    """Key, encoded input and class of labelled raw rows, in the columns that training reads."""
    x_BF = encode(encoder, rows).reshape(rows.num_rows, math.prod(encoder.input_shape))
    key, label = encoder.features.key, encoder.features.label
    arrays = [rows[key], encode_labels(encoder, rows[label])]
    flat = pa.array(x_BF.reshape(-1), pa.float32())
    offsets = pa.array(np.arange(0, x_BF.size + 1, max(x_BF.shape[1], 1), dtype=np.int32))
    return pa.RecordBatch.from_arrays(
        [_one_array(arrays[0]), arrays[1], pa.ListArray.from_arrays(offsets, flat)], names=[key, CLASS, ENCODED]
    )


def summarise_batches(features: Features, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """For each batch of raw rows its moments, as JSON, and its distinct labels: what `fit` adds up."""
    for batch in batches:
        labels = batch[features.label]
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([moments(batch, features.inputs[0]).model_dump_json()]),
                pa.array([labels.unique().to_pylist()], pa.list_(labels.type)),
            ],
            names=["moments", "labels"],
        )


def encode_batches(encoder: Encoder, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """`encode_rows` over many batches."""
    return (encode_rows(encoder, batch) for batch in batches)


def encode_labels(encoder: Encoder, labels: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The position of each label among the encoder's classes, int64.

    Raises:
        DataUnfit: a label that the training part does not have.
    """
    known = pa.array(encoder.classes, labels.type)
    positions = _one_array(pc.index_in(labels, known)).cast(pa.int64())
    if positions.null_count:
        unknown = pc.unique(labels.filter(pc.is_null(positions))).to_pylist()
        raise DataUnfit(
            f"labels {', '.join(map(str, unknown))} are in the data, but not in its training part",
            required="every label in the training part",
            where=f"column {encoder.features.label}",
            remedy="add rows of these classes, or drop the classes from the data",
        )
    return positions


def _one_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def read_encoder(path: Path) -> Encoder:
    return Encoder.model_validate_json(path.read_text(encoding="utf-8"))
