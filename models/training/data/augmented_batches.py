"""Batches as a training step reads them: augmented, on the device, with the loss of their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from bloomery.data_contracts.records.tensor_layout import PartSlice
from bloomery.models.training.config import Loop
from bloomery.models.training.data.augmentation import augment_batch, augment_parts, mixup
from bloomery.models.training.optimization.contrastive_loss import is_embedding, join_pairs, pair_tokens
from bloomery.models.training.optimization.learner import RowLosses
from bloomery.models.training.optimization.loss import BatchLoss


class AugmentedBatch(NamedTuple):
    """An augmented batch. With mixup, `other_y` are the labels of the rows mixed in; `y` has the weight `share`.

    The labels of pairs of texts are their `pair_tokens`, before augmentation.
    """

    x: torch.Tensor
    y: torch.Tensor
    share: float = 1.0
    other_y: torch.Tensor | None = None


def augment_rows(
    batch: tuple[torch.Tensor, torch.Tensor],
    loop: Loop,
    random: torch.Generator | None,
    slices: Sequence[PartSlice] = (),
) -> AugmentedBatch:
    """The batch, changed as `loop.augment` says; unchanged without a generator. `slices` are those of mixed rows."""
    x, y = batch
    if is_embedding(y):
        y = pair_tokens(x, y)
    if random is None:
        return AugmentedBatch(x, y)
    if slices:
        return AugmentedBatch(augment_parts(x, slices, loop.augment, random), y)
    x = augment_batch(x, loop.augment, random)
    if not loop.augment.mixup:
        return AugmentedBatch(x, y)
    mixed = mixup(x, y, loop.augment.mixup, random)
    return AugmentedBatch(mixed.x, y, mixed.share, mixed.other_y)


def pin_batch(batch: AugmentedBatch) -> AugmentedBatch:
    """Pins the batch in memory, for asynchronous copies to a GPU."""
    other_y = None if batch.other_y is None else batch.other_y.pin_memory()
    return batch._replace(x=batch.x.pin_memory(), y=batch.y.pin_memory(), other_y=other_y)


def move_batch(batch: AugmentedBatch, batch_loss: BatchLoss, device: torch.device) -> tuple[torch.Tensor, RowLosses]:
    """Moves a batch to the device, and returns its input and its loss function."""
    x, y = batch.x.to(device, non_blocking=True), batch.y.to(device, non_blocking=True)
    if is_embedding(y):
        x = join_pairs(x, y[len(x) :])
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if batch.other_y is None:
        return x, lambda outputs_BK, rows: batch_loss(outputs_BK, y[rows])
    share, other_y = batch.share, batch.other_y.to(device, non_blocking=True)

    def losses(outputs_BK: torch.Tensor, rows: slice) -> torch.Tensor:
        return share * batch_loss(outputs_BK, y[rows]) + (1 - share) * batch_loss(outputs_BK, other_y[rows])

    return x, losses
