"""The training loop.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from bloomery.data_contracts.errors import TrainingDiverged
from bloomery.models.networks.architectures.fused import find_part_slices
from bloomery.models.training.config import Augment, Loop
from bloomery.models.training.data.augmentation import batch_generator
from bloomery.models.training.data.augmented_batches import augment_rows, move_batch, pin_batch
from bloomery.models.training.data.batches import (
    ExampleSource,
    RowSource,
    TrainingData,
    batch_num_rows,
    iterate_batches,
    iterate_parts,
    num_batches,
)
from bloomery.models.training.data.length_buckets import order_rows, predict_by_length
from bloomery.models.training.data.prefetch import prefetch
from bloomery.models.training.embedding_evaluation import evaluate_embedding
from bloomery.models.training.layer_freezing import frozen_modules
from bloomery.models.training.optimization.contrastive_loss import is_embedding
from bloomery.models.training.optimization.learner import Learner, create_learner
from bloomery.models.training.optimization.loss import (
    BatchLoss,
    build_loss,
    is_regression,
    loss_and_metric_sums,
    loss_and_score,
)
from bloomery.models.training.optimization.optimizer import EMA, build_optimizer, build_schedule, clip_gradients
from bloomery.models.training.optimization.score_measure import ScoreMeasure
from bloomery.models.training.process_group import SINGLE_PROCESS, ProcessGroup, all_reduce_sum

_EVALUATION_ROWS, _EVALUATION_VALUES = 1024, 1 << 24  # per batch in evaluation; fewer rows where these are wide
_REPORT_STEPS = 50  # interval in steps at which the loss is checked; each check waits for the device


class EpochResult(NamedTuple):
    """The result of one epoch.

    Losses are means over rows: cross entropy in nats, or the standardised error. The score is that of the data's
    `measure`; without one, the accuracy from 0 to 1, or the standardised RMSE.
    """

    number: int
    train_loss: float
    val_loss: float
    val_score: float
    learning_rate: float


class StepProgress(NamedTuple):
    """The progress after a step, with the mean loss of the epoch so far."""

    number: int
    num_steps: int
    epoch: int
    loss: float
    learning_rate: float


@dataclass
class TrainingState:
    """The complete state of a training, which a checkpoint contains; the remaining training depends on nothing else."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    ema: EMA | None
    epoch: int = 1  # the current one
    batch: int = 0  # number of its completed batches
    step: int = 0
    rate: float = 0.0  # learning rate at the start of the epoch
    loss_sum: torch.Tensor = field(
        default_factory=lambda: torch.zeros((), dtype=torch.float64)
    )  # over the epoch's rows
    num_rows: int = 0
    history: list[EpochResult] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)


def _ignore(report: object) -> None:
    """Does nothing: the default of all hooks."""


@dataclass(frozen=True)
class TrainingHooks:
    """Callbacks of the training loop.

    Attributes:
        on_epoch: is called after each epoch.
        on_step: is called at intervals, after a step.
        load: may replace the state by that of a checkpoint, before the first step.
        save: is called with the state after each step and each epoch.
        stage_folder: the folder in which a training with stages keeps its checkpoints; None keeps none.
    """

    on_epoch: Callable[[EpochResult], None] = _ignore
    on_step: Callable[[StepProgress], None] = _ignore
    load: Callable[[TrainingState], None] = _ignore
    save: Callable[[TrainingState], None] = _ignore
    stage_folder: Path | None = None


@dataclass(frozen=True)
class Placement:
    """The device and the processes of a training.

    Attributes:
        group: the processes that divide the rows of each batch.
        parallelize: distributes the network in place if needed, and returns its learner.
    """

    device: torch.device | str = "cpu"
    group: ProcessGroup = SINGLE_PROCESS
    parallelize: Callable[[nn.Module, Loop], Learner] = create_learner


@dataclass(frozen=True)
class _Run:
    """The constants of a training."""

    learn: Learner
    split: RowSource
    loop: Loop
    batch_loss: BatchLoss
    seed: int
    group: ProcessGroup
    hooks: TrainingHooks


def train(
    network: nn.Module,
    data: TrainingData,
    loop: Loop,
    *,
    placement: Placement = Placement(),
    rate_shares: dict[str, float] | None = None,
    hooks: TrainingHooks = TrainingHooks(),
) -> list[EpochResult]:
    """Trains `network` in place; it ends on the CPU, in evaluation mode, with the weights of its `best_epoch`.

    Dropout draws from torch's global generator, everything else from the seed of `data`.

    Args:
        rate_shares: learning rates by parameter name, as fractions of the recipe's.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    group = placement.group
    split = order_rows(data.train, network, loop)
    use_channels_last(network)
    # Parallelised before the move: a network may be too large for the device until it is distributed.
    learn = placement.parallelize(network, loop)
    on_device = network.to(placement.device)
    state = _initial_state(on_device, split, loop, rate_shares, group)
    hooks.load(state)
    quantile = None if data.measure is None else data.measure.score.quantile
    batch_loss: BatchLoss = _sum_row_losses
    is_error = True
    if not data.has_row_losses:
        batch_loss = build_loss(loop, data.train.labels(read_all=loop.class_weights == "balanced"), quantile)
        is_error = data.measure.score.is_error if data.measure else is_regression(data.val.labels(read_all=False))
    run = _Run(learn, split, loop, batch_loss, data.seed, group, hooks)
    while state.epoch <= loop.epochs and not _has_stopped_improving(state.history, loop, is_error=is_error):
        if state.batch == 0:
            state.rate, state.num_rows = _learning_rate(state), 0
            state.loss_sum = torch.zeros((), dtype=torch.float64, device=placement.device)
        on_device.train()
        for module in frozen_modules(on_device):
            module.eval()
        _train_epoch(run, state)
        train_loss = _require_finite(_mean_loss(state, group), state, loop)
        with contextlib.nullcontext() if state.ema is None else state.ema.applied_to(on_device):
            if data.has_row_losses:
                val_loss = val_score = _mean_row_loss(on_device, data.val)
            else:
                val_loss, val_score = evaluate(on_device, data.val, group, data.measure, loop)
        _require_finite(val_loss, state, loop, "validation loss")
        state.history.append(EpochResult(state.epoch, train_loss, val_loss, val_score, state.rate))
        if best_epoch(state.history, loop, is_error=is_error) == state.history[-1]:
            weights = on_device.state_dict() if state.ema is None else state.ema.tensors
            state.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
        state.epoch, state.batch = state.epoch + 1, 0
        hooks.save(state)
        hooks.on_epoch(state.history[-1])
    if state.best:
        on_device.load_state_dict(state.best)
    move_to_cpu(on_device)
    network.eval()
    return state.history


def use_channels_last(network: nn.Module) -> nn.Module:
    """Stores the weights of image convolutions channels-last, in place, which is faster. Returns `network`."""
    if any(isinstance(module, nn.Conv2d) for module in network.modules()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def move_to_cpu(network: nn.Module) -> nn.Module:
    """Moves `network` to the CPU, with the memory layout that it is built with. Returns `network`."""
    return network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _initial_state(
    network: nn.Module, split: RowSource, loop: Loop, rate_shares: dict[str, float] | None, group: ProcessGroup
) -> TrainingState:
    optimizer = build_optimizer(network, loop, rate_shares)
    steps_per_epoch = -(-num_batches(split, loop.batch_size, group) // loop.accumulate)
    schedule = build_schedule(optimizer, loop, loop.epochs * max(steps_per_epoch, 1))
    return TrainingState(network, optimizer, schedule, None if loop.ema is None else EMA(network, loop.ema))


def _train_epoch(run: _Run, state: TrainingState) -> None:
    """Trains from `state.batch` to the end of the epoch. The loss sum stays on the device until it is checked."""
    loop, group = run.loop, run.group
    device = next(state.network.parameters()).device
    last = num_batches(run.split, loop.batch_size, group)
    num_steps = loop.epochs * -(-last // loop.accumulate)
    num_accumulated = 0
    batches = iterate_batches(
        run.split, loop.batch_size, seed=run.seed, epoch=state.epoch, start=state.batch, group=group
    )
    numbers = itertools.count(state.batch)
    slices = find_part_slices(state.network)
    augmented = (
        augment_rows(batch, loop, _augmentation_generator(run, next(numbers), state.epoch), slices) for batch in batches
    )
    for batch in prefetch(map(pin_batch, augmented)) if device.type == "cuda" else augmented:
        # Gradients are averaged over processes, so the divisor is the mean number of rows per process.
        divisor = batch_num_rows(run.split, loop.batch_size, state.batch) * loop.accumulate / group.size
        state.loss_sum += run.learn(*move_batch(batch, run.batch_loss, device), divisor)
        state.batch += 1
        state.num_rows += len(batch.x)
        num_accumulated += 1
        if num_accumulated < loop.accumulate and state.batch < last:
            continue
        num_accumulated = 0
        _take_step(state, loop)
        if state.step % _REPORT_STEPS == 0:
            loss = _require_finite(_mean_loss(state, group), state, loop)
            run.hooks.on_step(StepProgress(state.step, num_steps, state.epoch, loss, _learning_rate(state)))
        run.hooks.save(state)


def _augmentation_generator(run: _Run, number: int, epoch: int) -> torch.Generator | None:
    """The generator of batch `number`; None without augmentation."""
    if run.loop.augment == Augment():
        return None
    return batch_generator(run.seed, epoch, number * run.group.size + run.group.rank)


def _take_step(state: TrainingState, loop: Loop) -> None:
    if loop.clip_norm is not None:
        clip_gradients(state.network, loop.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.step()
    state.step += 1
    if state.ema is not None:
        state.ema.update(state.network)


def best_epoch(history: list[EpochResult], loop: Loop, *, is_error: bool) -> EpochResult:
    """The best epoch by `loop.best_by`; of equally good epochs the last.

    Args:
        is_error: the score is an error, so smaller is better.
    """
    if loop.best_by == "last":
        return history[-1]
    if loop.best_by == "loss":
        return min(reversed(history), key=lambda epoch: epoch.val_loss)
    return min(reversed(history), key=lambda epoch: epoch.val_score if is_error else -epoch.val_score)


def _has_stopped_improving(history: list[EpochResult], loop: Loop, *, is_error: bool) -> bool:
    """Whether the last `patience` epochs brought no improvement."""
    if loop.patience is None or not history:
        return False
    return history[-1].number - best_epoch(history, loop, is_error=is_error).number >= loop.patience


def _learning_rate(state: TrainingState) -> float:
    return float(state.schedule.get_last_lr()[0])


def _mean_loss(state: TrainingState, group: ProcessGroup) -> float:
    """The mean loss over the rows of the epoch so far, of all processes."""
    sums = all_reduce_sum(torch.stack([state.loss_sum, torch.full_like(state.loss_sum, state.num_rows)]), group)
    loss_sum, num_rows = sums.tolist()
    return loss_sum / num_rows if num_rows else math.nan


def _require_finite(loss: float, state: TrainingState, loop: Loop, name: str = "loss") -> float:
    if not math.isfinite(loss):
        problem = f"the {name} of epoch {state.epoch} is {loss}"
        if not state.num_rows:
            problem = "the training split has fewer than two rows, so there is no loss"
        raise TrainingDiverged(
            problem,
            required="a finite loss",
            where=f"step {state.step}, learning rate {_learning_rate(state):g} (highest {loop.learning_rate:g})",
            remedy="lower `learning_rate` in the recipe or set `clip_norm`, and check the ranges of the data",
        )
    return loss


def evaluate(
    network: nn.Module,
    examples: ExampleSource,
    group: ProcessGroup = SINGLE_PROCESS,
    measure: ScoreMeasure | None = None,
    loop: Loop | None = None,
) -> tuple[float, float]:
    """Mean loss and score, as in `EpochResult`. Leaves the network in evaluation mode.

    The loss of an embedding is that of `loop`; without it, it is not a number.

    With several processes, each evaluates its part of the rows, which must not be empty; with a `measure`, each
    evaluates all rows, since a score of all rows is no mean of parts.
    """
    if is_embedding(examples.labels(read_all=False)):
        return evaluate_embedding(lambda x: predict(network, x), examples, measure, loop)
    sums = torch.zeros(3, dtype=torch.float64)
    own_rows, num_parts = (slice(group.rank, None, group.size), group.size) if measure is None else (slice(None), 1)
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    for x, y in iterate_parts(examples, _EVALUATION_ROWS):
        # The same number of batches in every process, since a distributed network runs in all of them at once.
        max_batches = len(y) // num_parts
        batches = min(_count_batches(len(y) / num_parts, x), max(max_batches, 1))
        outputs_BK = predict(network, x[own_rows], num_batches=batches, max_batches=max_batches)
        sums += loss_and_metric_sums(outputs_BK, y[own_rows])
        if measure is not None:
            results.append((outputs_BK.argmax(dim=2) if outputs_BK.dim() == 3 else outputs_BK, y))
    loss, score = loss_and_score(all_reduce_sum(sums, group), examples.labels(read_all=False))
    if measure is not None and math.isfinite(loss):
        score = measure(*(torch.cat(parts) for parts in zip(*results, strict=True)))
    return loss, score


def _sum_row_losses(losses_B: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    return losses_B.float().sum()


def _mean_row_loss(network: nn.Module, examples: ExampleSource) -> float:
    """The mean of the outputs of a network that computes the losses of its rows."""
    losses = torch.cat([predict(network, x) for x, _ in examples.iterate()])
    return float(losses.double().mean())


def _count_batches(num_rows: float, x: torch.Tensor) -> int:
    """The number of batches in evaluation, at least one, for so many rows as those of `x`."""
    batch_rows = max(min(_EVALUATION_ROWS, _EVALUATION_VALUES // max(math.prod(x.shape[1:]), 1)), 1)
    return max(math.ceil(num_rows / batch_rows), 1)


@torch.no_grad()
def predict(
    network: nn.Module, x: torch.Tensor, *, num_batches: int | None = None, max_batches: int | None = None
) -> torch.Tensor:
    """outputs_BK of all rows on the CPU; sets the network to evaluation mode.

    Long texts are computed in more than `num_batches`, but at most `max_batches`; by default, a row may be a batch.
    """
    network.eval()
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    num_batches = num_batches or _count_batches(len(x), x)

    def compute(rows: torch.Tensor) -> torch.Tensor:
        return network(rows.to(device)).float().cpu()

    if getattr(network, "trims_padding", False):
        return predict_by_length(compute, x, num_batches, len(x) if max_batches is None else max_batches)
    return torch.cat([compute(rows) for rows in x.tensor_split(num_batches)])
