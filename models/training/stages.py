"""Trains in stages: parts with options of their own, one after the other. A killed training resumes inside any stage.

The weights and the state of the random generators after a completed stage are kept beside the checkpoints of the next.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from bloomery.data_contracts.documents.files import write_bytes
from bloomery.models.training.checkpointing import Checkpointer
from bloomery.models.training.config import Loop, Objective, Training
from bloomery.models.training.data.batches import ExampleSource, TrainingData, num_batches
from bloomery.models.training.layer_freezing import freeze_parameters, rate_shares
from bloomery.models.training.loop import (
    EpochResult,
    Placement,
    TrainingHooks,
    TrainingState,
    best_epoch,
    evaluate,
    move_to_cpu,
    train,
)
from bloomery.models.training.optimization.loss import is_regression

_WEIGHTS, _RANDOM, _RANDOM_OF_DEVICE, _PROGRESS = "network.", "random", "random_of_device", "progress"


class PlannedEpoch(NamedTuple):
    """An epoch of a training: what it learns, its rows, and the number of steps until its end."""

    objective: Objective
    num_rows: int
    last_step: int


def plan_epochs(training: Training, rows: ExampleSource, pretraining_rows: ExampleSource) -> list[PlannedEpoch]:
    """The epochs of all stages. One that stops early leaves a gap in the numbers of epochs and steps."""
    epochs: list[PlannedEpoch] = []
    step = 0
    objectives = [stage.objective for stage in training.stages] or ["task"]
    for part, objective in zip(training.parts, objectives, strict=True):
        rows_of_stage = rows if objective == "task" else pretraining_rows
        for _ in range(part.epochs):
            step += _steps_per_epoch(part, rows_of_stage)
            epochs.append(PlannedEpoch(objective, rows_of_stage.num_rows, step))
    return epochs


@dataclass(frozen=True)
class StageSetup:
    """What a stage trains: the network or a module around it, which has temporary layers, its options and rows."""

    module: nn.Module
    loop: Loop
    data: TrainingData


class _Progress(NamedTuple):
    """The number of completed stages, their steps, and their epochs that learnt the task."""

    num_stages: int
    num_steps: int
    history: list[EpochResult]


# (network, number of the stage from 0, its options) -> what the stage trains
SetUp = Callable[[nn.Module, int, Training], StageSetup]


def train_in_stages(
    network: nn.Module,
    training: Training,
    set_up: SetUp,
    *,
    placement: Placement,
    hooks: TrainingHooks,
) -> list[EpochResult]:
    """Trains `network` in place, stage by stage. Returns the epochs that learnt the task; numbers go on over stages.

    Each stage begins with the best weights of the stage before it, and with a new optimizer and schedule. If no epoch
    of it is better, these weights stay.

    Args:
        set_up: called at the beginning of each stage; may draw temporary layers from torch's global generator.
        hooks: `stage_folder` is the folder for checkpoints.
    """
    folder = hooks.stage_folder
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    progress = _Progress(0, 0, [])
    for number in range(len(training.stages), 0, -1):
        completed = None if folder is None else _read_completed(folder, number)
        if completed is not None:
            progress = _restore(network, completed)
            break
    for number in range(progress.num_stages, len(training.stages)):
        part, stage = training.parts[number], training.stages[number]
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trainable)
        freeze_parameters(network, part.freeze)
        setup = set_up(network, number, part)
        first_epoch = sum(earlier.epochs for earlier in training.stages[:number])
        checkpointer = None if folder is None else Checkpointer(folder / f"stage-{number}", part.checkpoints)
        start = _evaluate_start(network, training, number, setup, placement)
        results = train(
            setup.module,
            setup.data,
            setup.loop,
            placement=placement,
            rate_shares=_rate_shares(network, setup.module, part),
            hooks=_shifted(hooks, first_epoch, progress.num_steps, checkpointer),
        )
        if start is not None:
            _restore_better_start(network, start, results, setup)
        if stage.objective == "task":
            progress.history.extend(epoch._replace(number=epoch.number + first_epoch) for epoch in results)
        num_steps = progress.num_steps + part.epochs * _steps_per_epoch(part, setup.data.train)
        progress = _Progress(number + 1, num_steps, progress.history)
        if folder is not None:
            _write_completed(folder, network, progress)
    network.eval()  # also if all stages were complete
    return progress.history


class _Start(NamedTuple):
    """The weights at the beginning of a stage, and their evaluation, as an epoch of number 0."""

    weights: dict[str, torch.Tensor]
    result: EpochResult


def _evaluate_start(
    network: nn.Module, training: Training, number: int, setup: StageSetup, placement: Placement
) -> _Start | None:
    """The weights of the stage before, if it learnt the task too, and the best epoch is chosen; otherwise None."""
    objectives = {stage.objective for stage in training.stages[max(number - 1, 0) : number + 1]}
    if number == 0 or objectives != {"task"} or setup.loop.best_by == "last":
        return None
    if placement.group.size == 1:
        network.to(placement.device)
    loss, score = evaluate(network, setup.data.val, measure=setup.data.measure, loop=setup.loop)
    move_to_cpu(network)
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return _Start(weights, EpochResult(0, math.nan, loss, score, 0.0))


def _restore_better_start(network: nn.Module, start: _Start, results: list[EpochResult], setup: StageSetup) -> None:
    """Sets the weights to those at the beginning of the stage, if no epoch is better."""
    measure, labels = setup.data.measure, setup.data.val.labels(read_all=False)
    is_error = measure.score.is_error if measure else is_regression(labels)
    if best_epoch([*results, start.result], setup.loop, is_error=is_error) is start.result:  # also if equally good
        network.load_state_dict(start.weights)


def _steps_per_epoch(part: Training, rows: ExampleSource) -> int:
    return -(-num_batches(rows, part.batch_size) // part.accumulate)


def _rate_shares(network: nn.Module, module: nn.Module, part: Training) -> dict[str, float] | None:
    """Each parameter's fraction of the learning rate, by its name in `module`."""
    if part.discount == 1:
        return None
    shares = rate_shares(network, part.discount)
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {names[parameter]: shares[name] for name, parameter in network.named_parameters()}


def _shifted(hooks: TrainingHooks, epochs: int, steps: int, checkpointer: Checkpointer | None) -> TrainingHooks:
    """The hooks of a stage before which there are `epochs` and `steps`, which saves checkpoints of its own."""

    def save_state(state: TrainingState) -> None:
        if checkpointer is not None:
            checkpointer.save(state)
        hooks.save(state)

    return TrainingHooks(
        on_epoch=lambda epoch: hooks.on_epoch(epoch._replace(number=epoch.number + epochs)),
        on_step=lambda step: hooks.on_step(
            step._replace(number=step.number + steps, num_steps=step.num_steps + steps, epoch=step.epoch + epochs)
        ),
        load=hooks.load if checkpointer is None else checkpointer.load,
        save=save_state,
    )


def _write_completed(folder: Path, network: nn.Module, progress: _Progress) -> None:
    """Keeps the state after the completed stages, and deletes what it replaces."""
    tensors = {
        f"{_WEIGHTS}{name}": tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()
    }
    tensors[_RANDOM] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors[_RANDOM_OF_DEVICE] = torch.cuda.get_rng_state()
    number = progress.num_stages
    write_bytes(_completed_path(folder, number), save(tensors, {_PROGRESS: json.dumps(progress)}))
    _completed_path(folder, number - 1).unlink(missing_ok=True)
    shutil.rmtree(folder / f"stage-{number - 1}", ignore_errors=True)


def _read_completed(folder: Path, number: int) -> tuple[dict[str, torch.Tensor], _Progress] | None:
    """The tensors and the progress after `number` completed stages; None if there is no intact file."""
    try:
        with safe_open(_completed_path(folder, number), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            num_stages, num_steps, history = json.loads(file.metadata()[_PROGRESS])
    except (SafetensorError, OSError):
        return None
    return tensors, _Progress(num_stages, num_steps, [EpochResult(*values) for values in history])


def _completed_path(folder: Path, number: int) -> Path:
    return folder / f"completed-{number}.safetensors"


def _restore(network: nn.Module, completed: tuple[dict[str, torch.Tensor], _Progress]) -> _Progress:
    """Sets the weights and the random generators to those after the completed stages."""
    tensors, progress = completed
    network.load_state_dict(
        {name.removeprefix(_WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(_WEIGHTS)}
    )
    torch.set_rng_state(tensors[_RANDOM])
    if _RANDOM_OF_DEVICE in tensors:
        torch.cuda.set_rng_state(tensors[_RANDOM_OF_DEVICE])
    return progress
