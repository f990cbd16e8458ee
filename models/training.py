"""The training loop.

Shapes: B rows, K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from data_contracts.errors import TrainingDiverged
from models.batches import Examples, shuffled
from models.config import Loop


class Epoch(NamedTuple):
    """What one epoch came to. Losses are means of cross entropy in nats; accuracy is a share from 0 to 1."""

    number: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float


def train(
    network: nn.Module,
    train_part: Examples,
    val_part: Examples,
    loop: Loop,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Train `network` in place; it ends in evaluation mode with the weights of its best epoch.

    The best epoch is the one with the lowest validation loss. AdamW (Source: Loshchilov & Hutter 2019) under a
    one-cycle rate (Source: Smith & Topin 2018).

    Raises:
        TrainingDiverged: the loss is not a number.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=loop.learning_rate, weight_decay=loop.weight_decay)
    steps = max(-(-len(train_part.y) // loop.batch_size), 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=loop.learning_rate, total_steps=loop.epochs * steps
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=loop.label_smoothing)
    epochs: list[Epoch] = []
    best = copy.deepcopy(network.state_dict())
    for number in range(1, loop.epochs + 1):
        rate = float(schedule.get_last_lr()[0])
        train_loss = _one_epoch(network, train_part, loop, criterion, optimizer, schedule, seed=seed, number=number)
        val_loss, val_accuracy = evaluate(network, val_part)
        _require_finite(val_loss, f"the validation loss of epoch {number}", number, loop)
        epochs.append(Epoch(number, train_loss, val_loss, val_accuracy, rate))
        if val_loss <= min(epoch.val_loss for epoch in epochs):
            best = copy.deepcopy(network.state_dict())
        on_epoch(epochs[-1])
    network.load_state_dict(best)
    network.eval()
    return epochs


def _one_epoch(
    network: nn.Module,
    examples: Examples,
    loop: Loop,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    *,
    seed: int,
    number: int,
) -> float:
    network.train()
    total, num_rows = 0.0, 0
    for x, y in shuffled(examples, loop.batch_size, seed=seed, epoch=number):
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(network(x), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(y)
        num_rows += len(y)
    mean = total / num_rows if num_rows else math.nan
    what = f"the loss of epoch {number}" if num_rows else "the training part has fewer than two rows, so the loss"
    _require_finite(mean, what, number, loop)
    return mean


def _require_finite(loss: float, what: str, number: int, loop: Loop) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"{what} is {loss}",
            required="a finite loss",
            where=f"epoch {number}, learning rate {loop.learning_rate:g}",
            remedy="lower `learning_rate` in the recipe, and look at the data's ranges",
        )


@torch.no_grad()
def evaluate(network: nn.Module, examples: Examples) -> tuple[float, float]:
    """Mean cross entropy in nats and accuracy from 0 to 1. Leaves the network in evaluation mode."""
    logits_BK = predict(network, examples.x)
    loss = nn.functional.cross_entropy(logits_BK, examples.y).item()
    return loss, (logits_BK.argmax(1) == examples.y).float().mean().item()


@torch.no_grad()
def predict(network: nn.Module, x: torch.Tensor, batch_size: int = 1024) -> torch.Tensor:
    """logits_BK for all rows, in evaluation mode."""
    network.eval()
    return torch.cat([network(rows) for rows in x.split(batch_size)])
