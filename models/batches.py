"""Encoded Parquet as tensors, and tensors as batches.

Shapes: N rows, B rows of a batch, the input's own shape behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from models.encoder import CLASS, ENCODED


class Examples(NamedTuple):
    """Encoded rows with their classes: x float32 (N, ...), y int64 (N,), key numpy (N,)."""

    x: torch.Tensor
    y: torch.Tensor
    key: np.ndarray


def read_examples(path: Path, key: str, input_shape: tuple[int, ...]) -> Examples:
    """All rows of an encoded Parquet file, in the file's order."""
    table = pq.read_table(path)
    flat = pc.list_flatten(table[ENCODED].combine_chunks()).to_numpy()
    x = torch.from_numpy(flat.reshape(table.num_rows, *input_shape).copy())
    y = torch.from_numpy(table[CLASS].to_numpy().copy())
    return Examples(x, y, table[key].to_numpy())


def shuffled(
    examples: Examples, batch_size: int, *, seed: int, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches in an order that depends on seed and epoch alone.

    A last batch of a single row is left out, since batch normalisation needs two.
    """
    order = torch.randperm(len(examples.y), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    for rows in order.split(batch_size):
        if len(rows) > 1:
            yield examples.x[rows], examples.y[rows]
