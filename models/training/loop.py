"""The training loop.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from bloomery.data_contracts.errors import TrainingDiverged
from bloomery.models.training.config import Augment, Loop
from bloomery.models.training.data.augmentation import augment_batch, batch_generator, mixup
from bloomery.models.training.data.batches import ExampleSource, batch_num_rows, iterate_batches, num_batches
from bloomery.models.training.data.prefetch import prefetch
from bloomery.models.training.distributed.process_group import SINGLE_PROCESS, ProcessGroup, all_reduce_sum
from bloomery.models.training.optimization.loss import (
    BatchLoss,
    build_loss,
    is_regression,
    loss_and_metric_sums,
    loss_and_score,
)
from bloomery.models.training.optimization.mixed_precision import autocast
from bloomery.models.training.optimization.optimizer import EMA, build_optimizer, build_schedule, clip_gradients
from bloomery.models.training.transfer_learning import frozen_modules

# The losses of the rows of a batch that the slice names, added up, from the outputs for these rows.
RowLosses = Callable[[torch.Tensor, slice], torch.Tensor]
# (x, losses, share) -> the loss of the batch; afterwards the gradients of loss / share are added to the network's.
Learner = Callable[[torch.Tensor, RowLosses, float], torch.Tensor]

_EVALUATION_ROWS = 1024  # rows of a batch when nothing is learnt
_REPORT_STEPS = 50  # how often the loss is looked at; each look waits for the device


class EpochResult(NamedTuple):
    """What one epoch came to.

    Losses are means over rows: cross entropy in nats, or the error in standard units. The score is the accuracy from 0
    to 1, or the RMSE in standard units.
    """

    number: int
    train_loss: float
    val_loss: float
    val_score: float
    learning_rate: float


class StepProgress(NamedTuple):
    """Where training is after a step, and the mean loss of the epoch so far."""

    number: int
    num_steps: int
    epoch: int
    loss: float
    learning_rate: float


@dataclass
class TrainingState:
    """All that the rest of training depends on: kept in a checkpoint, it goes on as if it had never stopped."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    mean: EMA | None
    epoch: int = 1  # the one that is under way
    batch: int = 0  # how many of its batches are done
    step: int = 0
    rate: float = 0.0  # with which the epoch began
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # of the epoch's rows
    num_rows: int = 0
    history: list[EpochResult] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)


def create_learner(forward: nn.Module, loop: Loop) -> Learner:
    """To learn from a batch by one pass through `forward` and one back."""
    called: Callable[[torch.Tensor], torch.Tensor] = torch.compile(forward) if loop.compile else forward

    def learn(x: torch.Tensor, losses: RowLosses, share: float) -> torch.Tensor:
        with autocast(loop, x.device):
            outputs_BK = called(x)
        loss = losses(outputs_BK, slice(None))
        (loss / share).backward()
        return loss.detach()

    return learn


def train(
    network: nn.Module,
    train_part: ExampleSource,
    val_part: ExampleSource,
    loop: Loop,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    world: ProcessGroup = SINGLE_PROCESS,
    spread: Callable[[nn.Module, Loop], Learner] = create_learner,
    shares: dict[str, float] | None = None,
    on_epoch: Callable[[EpochResult], None] = lambda epoch: None,
    on_step: Callable[[StepProgress], None] = lambda step: None,
    restore: Callable[[TrainingState], None] = lambda state: None,
    keep: Callable[[TrainingState], None] = lambda state: None,
) -> list[EpochResult]:
    """Train `network` in place; it ends on the processor, in evaluation mode, with the weights of its best epoch.

    Which epoch that is says `best_epoch`. `shares` are learning rates by parameter, as shares of the recipe's.
    `restore` may put an earlier state in place before the first step; `keep` is shown the state after each one. Dropout
    draws from torch's own generator, everything else from `seed`. Of several processes that share each batch `world`
    tells which one this is, and `spread` makes the network's gradients those of the whole batch.

    Raises:
        TrainingDiverged: the loss is not a number.
    """
    use_channels_last(network)
    # A network that is too large for the device gets there when this process has only its part left.
    learn = spread(network, loop)
    on_device = network.to(device)
    state = _initial_state(on_device, train_part, loop, shares, world)
    restore(state)
    loss_of_rows = build_loss(loop, train_part.labels(all_of_them=loop.class_weights == "balanced"))
    is_error = is_regression(val_part.labels(all_of_them=False))
    while state.epoch <= loop.epochs and not _has_stopped_improving(state.history, loop, is_error=is_error):
        if state.batch == 0:
            state.rate, state.num_rows = _learning_rate(state), 0
            state.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        on_device.train()
        for module in frozen_modules(on_device):
            module.eval()
        _train_epoch(learn, state, train_part, loop, loss_of_rows, seed=seed, world=world, on_step=on_step, keep=keep)
        train_loss = _require_finite(_mean_loss(state, world), state, loop)
        with contextlib.nullcontext() if state.mean is None else state.mean.in_place(on_device):
            val_loss, val_score = evaluate(on_device, val_part, world)
        _require_finite(val_loss, state, loop, "validation loss")
        state.history.append(EpochResult(state.epoch, train_loss, val_loss, val_score, state.rate))
        if best_epoch(state.history, loop, is_error=is_error) == state.history[-1]:
            best = on_device.state_dict() if state.mean is None else state.mean.tensors
            state.best = {name: tensor.detach().clone() for name, tensor in best.items()}
        state.epoch, state.batch = state.epoch + 1, 0
        keep(state)
        on_epoch(state.history[-1])
    if state.best:
        on_device.load_state_dict(state.best)
    move_to_cpu(on_device)
    network.eval()
    return state.history


def use_channels_last(network: nn.Module) -> nn.Module:
    """The same network, whose convolutions of images have their channels last in memory, where they are faster."""
    if any(isinstance(module, nn.Conv2d) for module in network.modules()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def move_to_cpu(network: nn.Module) -> nn.Module:
    """The same network on the processor, laid out as it is built."""
    return network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _initial_state(
    network: nn.Module, part: ExampleSource, loop: Loop, shares: dict[str, float] | None, world: ProcessGroup
) -> TrainingState:
    optimizer = build_optimizer(network, loop, shares)
    steps_of_epoch = -(-num_batches(part, loop.batch_size, world) // loop.accumulate)
    schedule = build_schedule(optimizer, loop, loop.epochs * max(steps_of_epoch, 1))
    return TrainingState(network, optimizer, schedule, None if loop.ema is None else EMA(network, loop.ema))


def _train_epoch(
    learn: Learner,
    state: TrainingState,
    part: ExampleSource,
    loop: Loop,
    loss_of_rows: BatchLoss,
    *,
    seed: int,
    world: ProcessGroup,
    on_step: Callable[[StepProgress], None],
    keep: Callable[[TrainingState], None],
) -> None:
    """From `state.batch` to the end of the epoch. The sum of losses stays on the device until it is looked at."""
    device = next(state.network.parameters()).device
    last = num_batches(part, loop.batch_size, world)
    num_steps = loop.epochs * -(-last // loop.accumulate)
    num_grouped = 0
    drawn = iterate_batches(part, loop.batch_size, seed=seed, epoch=state.epoch, start=state.batch, world=world)
    numbers = itertools.count(state.batch)
    changed = (
        _augment(*batch, loop, _augmentation_generator(next(numbers), state.epoch, loop, seed, world))
        for batch in drawn
    )
    for batch in prefetch(map(_pin, changed)) if device.type == "cuda" else changed:
        # Processes take the mean of their gradients, so each one's rows count as a share of the mean batch.
        share = batch_num_rows(part, loop.batch_size, state.batch) * loop.accumulate / world.size
        state.loss_sum += learn(*_on_device(batch, loss_of_rows, device), share)
        state.batch += 1
        state.num_rows += len(batch.y)
        num_grouped += 1
        if num_grouped < loop.accumulate and state.batch < last:
            continue
        num_grouped = 0
        _take_step(state, loop)
        if state.step % _REPORT_STEPS == 0:
            mean = _require_finite(_mean_loss(state, world), state, loop)
            on_step(StepProgress(state.step, num_steps, state.epoch, mean, _learning_rate(state)))
        keep(state)


def _augmentation_generator(
    number: int, epoch: int, loop: Loop, seed: int, world: ProcessGroup
) -> torch.Generator | None:
    """Of the batch of that number, whatever was drawn for others; None where nothing is drawn."""
    if loop.augment == Augment():
        return None
    return batch_generator(seed, epoch, number * world.size + world.rank)


class _AugmentedBatch(NamedTuple):
    """A batch, changed as the recipe says. `other` are the labels of the rows that were mixed in, `share` the own."""

    x: torch.Tensor
    y: torch.Tensor
    share: float = 1.0
    other: torch.Tensor | None = None


def _augment(x: torch.Tensor, y: torch.Tensor, loop: Loop, random: torch.Generator | None) -> _AugmentedBatch:
    if random is None:
        return _AugmentedBatch(x, y)
    x = augment_batch(x, loop.augment, random)
    if not loop.augment.mixup:
        return _AugmentedBatch(x, y)
    blend = mixup(x, y, loop.augment.mixup, random)
    return _AugmentedBatch(blend.x, y, blend.share, blend.other)


def _pin(batch: _AugmentedBatch) -> _AugmentedBatch:
    """In memory from which a GPU is given copies while it works on others."""
    other = None if batch.other is None else batch.other.pin_memory()
    return batch._replace(x=batch.x.pin_memory(), y=batch.y.pin_memory(), other=other)


def _on_device(batch: _AugmentedBatch, loss_of_rows: BatchLoss, device: torch.device) -> tuple[torch.Tensor, RowLosses]:
    """A batch on the device, and how its outputs are judged."""
    x = batch.x.to(device, non_blocking=True)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    y = batch.y.to(device, non_blocking=True)
    if batch.other is None:
        return x, lambda outputs_BK, rows: loss_of_rows(outputs_BK, y[rows])
    share, other = batch.share, batch.other.to(device, non_blocking=True)

    def losses(outputs_BK: torch.Tensor, rows: slice) -> torch.Tensor:
        return share * loss_of_rows(outputs_BK, y[rows]) + (1 - share) * loss_of_rows(outputs_BK, other[rows])

    return x, losses


def _take_step(state: TrainingState, loop: Loop) -> None:
    if loop.clip_norm is not None:
        clip_gradients(state.network, loop.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.step()
    state.step += 1
    if state.mean is not None:
        state.mean.follow(state.network)


def best_epoch(history: list[EpochResult], loop: Loop, *, is_error: bool) -> EpochResult:
    """The one with the lowest validation loss, or the best score or the last, as `loop` says; of equal ones the last.

    `is_error` says that the score is one, which is to be small.
    """
    if loop.best_by == "last":
        return history[-1]
    if loop.best_by == "loss":
        return min(reversed(history), key=lambda epoch: epoch.val_loss)
    return min(reversed(history), key=lambda epoch: epoch.val_score if is_error else -epoch.val_score)


def _has_stopped_improving(history: list[EpochResult], loop: Loop, *, is_error: bool) -> bool:
    """Whether none of the last `patience` epochs was the best one."""
    if loop.patience is None or not history:
        return False
    return history[-1].number - best_epoch(history, loop, is_error=is_error).number >= loop.patience


def _learning_rate(state: TrainingState) -> float:
    return float(state.schedule.get_last_lr()[0])


def _mean_loss(state: TrainingState, world: ProcessGroup) -> float:
    """Of the rows of the epoch so far, over all processes."""
    sums = all_reduce_sum(torch.stack([state.loss_sum, torch.full_like(state.loss_sum, state.num_rows)]), world)
    loss_sum, num_rows = sums.tolist()
    return loss_sum / num_rows if num_rows else math.nan


def _require_finite(loss: float, state: TrainingState, loop: Loop, name: str = "loss") -> float:
    if not math.isfinite(loss):
        what = f"the {name} of epoch {state.epoch} is {loss}"
        if not state.num_rows:
            what = "the training part has fewer than two rows, so there is no loss"
        raise TrainingDiverged(
            what,
            required="a finite loss",
            where=f"step {state.step}, learning rate {_learning_rate(state):g} (highest {loop.learning_rate:g})",
            remedy="lower `learning_rate` in the recipe or set `clip_norm`, and look at the data's ranges",
        )
    return loss


def evaluate(network: nn.Module, part: ExampleSource, world: ProcessGroup = SINGLE_PROCESS) -> tuple[float, float]:
    """Mean loss and score, as in `Epoch`. Leaves the network in evaluation mode.

    Of several processes each answers its share of the rows; all must have some.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for x, y in part.in_order():
        mine = slice(world.rank, None, world.size)
        # As many batches in every process: a network that is spread over them answers in all at once.
        outputs_BK = predict(network, x[mine], num_batches=-(-len(y) // (_EVALUATION_ROWS * world.size)))
        sums += loss_and_metric_sums(outputs_BK, y[mine])
    return loss_and_score(all_reduce_sum(sums, world), part.labels(all_of_them=False))


@torch.no_grad()
def predict(network: nn.Module, x: torch.Tensor, *, num_batches: int | None = None) -> torch.Tensor:
    """outputs_BK for all rows, in evaluation mode, on the processor."""
    network.eval()
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    pieces = x.tensor_split(num_batches or max(-(-len(x) // _EVALUATION_ROWS), 1))
    return torch.cat([network(rows.to(device)).float().cpu() for rows in pieces])
