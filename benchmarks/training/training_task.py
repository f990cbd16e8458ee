"""The training task that `loop.py` gives to every training loop, and the times that a loop records."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.training.config import Training
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.optimization.loss import BatchLoss, build_loss


class TrainingTask(NamedTuple):
    """The same network, rows, loss, optimizer and schedule for every training loop."""

    blueprint: Blueprint
    training: Training
    rows: Examples

    @property
    def num_steps(self) -> int:
        return self.training.epochs * -(-self.rows.num_rows // self.training.batch_size)

    def build_network(self) -> nn.Module:
        torch.manual_seed(0)
        network = build_network(self.blueprint)
        # Channels-last is faster on processors too, so every loop uses it.
        is_image = self.blueprint.layout.kind == "image"
        return network.to(memory_format=torch.channels_last) if is_image else network  # type: ignore[call-overload]

    def build_loss(self) -> BatchLoss:
        """Returns a function that computes the mean loss of a batch."""
        sum_loss = build_loss(self.training, self.rows.y)
        return lambda outputs, y: sum_loss(outputs, y) / len(y)

    def build_optimizer(self, network: nn.Module) -> torch.optim.AdamW:
        rate, decay = self.training.learning_rate, self.training.weight_decay
        return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, fused=True)

    def build_schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, self.training.learning_rate, self.num_steps)


class EpochTimes(list[tuple[float, float]]):
    """Wall-clock and processor time in seconds at the end of each epoch."""

    def record(self, *_: object) -> None:
        self.append((time.perf_counter(), time.process_time()))


TrainingLoop = Callable[[TrainingTask, EpochTimes], None]
