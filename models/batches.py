"""Encoded Parquet as tensors, and tensors as batches.

Shapes: N rows, B rows of a batch, the input's own shape behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from models.encoder import CLASS, ENCODED

_GROUP_ROWS = 65_536
_BLOCK_VALUES = 500_000  # 2 MB, which a processor's cache holds


class Examples(NamedTuple):
    """Encoded rows with their classes: x float32 (N, ...), y int64 (N,), key numpy (N,)."""

    x: torch.Tensor
    y: torch.Tensor
    key: np.ndarray


def read_examples(path: Path, key: str, input_shape: tuple[int, ...]) -> Examples:
    """All rows of an encoded Parquet file, in the file's order. Nothing is held twice but one row group."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        num_rows = file.metadata.num_rows
        x = np.empty((num_rows, math.prod(input_shape)), np.float32)
        y = np.empty(num_rows, np.int64)
        keys = [np.empty(0, file.schema_arrow.field(key).type.to_pandas_dtype())]
        start = 0
        for batch in file.iter_batches(_GROUP_ROWS, columns=[key, CLASS, ENCODED]):
            stop = start + batch.num_rows
            x[start:stop] = pc.list_flatten(batch.column(ENCODED)).to_numpy().reshape(batch.num_rows, -1)
            y[start:stop] = batch.column(CLASS).to_numpy()
            keys.append(batch.column(key).to_numpy(zero_copy_only=False))
            start = stop
    x_of_rows = torch.from_numpy(x.reshape(num_rows, *input_shape))
    return Examples(x_of_rows, torch.from_numpy(y), np.concatenate(keys[1:] or keys))


def shuffled(
    examples: Examples, batch_size: int, *, seed: int, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches in an order that depends on seed and epoch alone.

    A last batch of a single row is left out, since batch normalisation needs two.
    """
    order = torch.randperm(len(examples.y), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    # Rows are gathered for many batches at once: a small gather costs more to call than to do.
    block = batch_size * max(_BLOCK_VALUES // (batch_size * max(examples.x[0].numel(), 1)), 1) if len(order) else 1
    for rows in order.split(block):
        xs = examples.x.index_select(0, rows).split(batch_size)
        ys = examples.y.index_select(0, rows).split(batch_size)
        yield from ((x, y) for x, y in zip(xs, ys, strict=True) if len(y) > 1)
