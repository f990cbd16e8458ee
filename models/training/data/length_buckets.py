"""Batches of rows of similar length, so that little of a batch is padding.

An epoch's random order is divided into chunks of many batches; within each, rows are sorted by length and the batches
are shuffled. The order depends on the file, the seed, the epoch and the batch size only.

Shapes: N rows, W rows of a window, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bloomery.models.networks.layers.padding import pad_steps, trim_common_padding
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import RowSource
from bloomery.models.training.data.streaming import Window, window_seed

_CHUNK_BATCHES = 50  # batches among which rows are sorted
_EVALUATION_STEPS = 64  # of a row; longer rows are evaluated in smaller batches


def row_lengths(x: torch.Tensor) -> torch.Tensor:
    """The number of real steps of each row (N,): of tokens (N, T), or of steps with a flag for padding (N, T, F)."""
    return (x >= 1 if x.dim() == 2 else x[..., -1] > 0.5).sum(1)


@dataclass(frozen=True)
class LengthBuckets:
    """Rows of `rows`, in an order where the rows of a batch have similar lengths."""

    rows: RowSource
    batch_size: int

    @property
    def num_rows(self) -> int:
        return self.rows.num_rows

    def windows(self, seed: int, epoch: int, first: int = 0) -> Iterator[Window]:
        """Yields the windows of the epoch, each with its rows in the new order."""
        for window in self.rows.windows(seed, epoch, first):
            random = torch.Generator().manual_seed(window_seed(seed, epoch, window.position))
            # The first rows complete the last batch of the previous window; the last ones are a part of a batch.
            num_first = min(-window.position % self.batch_size, len(window.order))
            num_full = (len(window.order) - num_first) // self.batch_size * self.batch_size
            head, body, tail = window.order.split([num_first, num_full, len(window.order) - num_first - num_full])
            lengths = row_lengths(window.x)
            yield window._replace(order=torch.cat([head, _sort_chunks(body, lengths, self.batch_size, random), tail]))


def order_rows(rows: RowSource, network: nn.Module, loop: Loop) -> RowSource:
    """The rows in buckets of lengths, if `loop` says so; by default if the network drops steps that are padding."""
    is_sorted = loop.length_bucketing
    if is_sorted is None:
        is_sorted = bool(getattr(network, "trims_padding", False))
    return LengthBuckets(rows, loop.batch_size) if is_sorted else rows


def _sort_chunks(order: torch.Tensor, lengths: torch.Tensor, batch_size: int, random: torch.Generator) -> torch.Tensor:
    batches: list[torch.Tensor] = []
    for chunk in order.split(_CHUNK_BATCHES * batch_size):
        batches += chunk[lengths[chunk].argsort(stable=True)].split(batch_size)
    return torch.cat([batches[number] for number in torch.randperm(len(batches), generator=random)] or [order])


def predict_by_length(
    network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, num_batches: int, max_batches: int
) -> torch.Tensor:
    """The outputs of all rows in their order, where batches of similar length are computed without common padding.

    Rows of more than 64 steps are computed in more batches than `num_batches`, which bounds the memory, but in at most
    `max_batches`, which is at most the number of rows.
    """
    num_batches = min(num_batches * -(-x.shape[1] // _EVALUATION_STEPS), max(max_batches, 1))
    order = row_lengths(x).argsort(stable=True)
    batches = [network(trim_common_padding(rows)) for rows in x[order].tensor_split(num_batches)]
    outputs = torch.cat([pad_steps(outputs, x.shape[1]) for outputs in batches])
    return torch.empty_like(outputs).index_copy_(0, order, outputs)
