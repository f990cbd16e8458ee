"""A network fitted to prepared rows, as the training stage and each trial of a search do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.records import Dataset, InitialWeights
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.device import select_device
from bloomery.tasks.infrastructure.settings import settings

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.networks.blueprint import Blueprint
    from bloomery.models.training.checkpointing import Checkpointer
    from bloomery.models.training.data.batches import Examples, ExampleSource
    from bloomery.models.training.differential_privacy import PrivacySpent
    from bloomery.models.training.loop import EpochResult, Placement, StepProgress
    from bloomery.models.training.transfer_learning import TransferResult

_SHOWN_ROWS = 50_000


class TrainingSplits(NamedTuple):
    """The splits that training may see."""

    train: ExampleSource
    val: ExampleSource


class FitResult(NamedTuple):
    """A trained network in evaluation mode, and what became of it."""

    network: nn.Module
    blueprint: Blueprint
    history: list[EpochResult]
    spent: PrivacySpent | None
    transfer: TransferResult | None


def checkpoint_folder(key: str) -> Path:
    """Where a training stage keeps its state until it is whole."""
    return settings().home / "checkpoints" / key


def read_splits(dataset: Dataset) -> TrainingSplits:
    from bloomery.models.training.data.batches import open_examples

    parts = (dataset.train, dataset.val)
    return TrainingSplits(*(open_examples(settings().path(part.uri), dataset.key, dataset.layout) for part in parts))


def sample_validation_rows(dataset: Dataset, val: ExampleSource) -> Examples:
    """The validation part as it is reported: an even sample of it, where it does not fit into memory."""
    from bloomery.models.training.data.batches import Examples, sample_examples

    if isinstance(val, Examples):
        return val
    return sample_examples(settings().path(dataset.val.uri), dataset.key, dataset.layout, _SHOWN_ROWS)


def make_blueprint(dataset: Dataset, model: Model) -> Blueprint:
    from bloomery.models.networks.blueprint import Blueprint

    num_outputs = len(dataset.classes) if dataset.task == "classification" else 1
    return Blueprint(config=model, layout=dataset.layout, task=dataset.task, num_outputs=num_outputs)


def fit_network(
    parts: TrainingSplits,
    blueprint: Blueprint,
    training: Training,
    start: InitialWeights | None = None,
    *,
    on_epoch: Callable[[EpochResult], None] = lambda epoch: None,
    on_step: Callable[[StepProgress], None] = lambda step: None,
    keeper: Checkpointer | None = None,
    placement: Placement | None = None,
) -> FitResult:
    """The same arguments give the same weights, bit for bit, on a processor of the same kind.

    With a `keeper` a killed training goes on where it was last kept, and ends in the same bits. Private training is not
    kept: it starts anew, since what was spent of the budget would have to be told of both.
    """
    from bloomery.models.networks.blueprint import build_network
    from bloomery.models.training.differential_privacy import train_privately
    from bloomery.models.training.loop import Placement, TrainingHooks, train

    network = build_network(blueprint)
    transferred = None if start is None else _transfer(network, start, training)
    if training.privacy is not None:
        history, spent = train_privately(
            network,
            _in_memory(parts.train),
            parts.val,
            training,
            training.privacy,
            seed=training.seed,
            on_epoch=on_epoch,
        )
        return FitResult(network, blueprint, history, spent, transferred)
    hooks = TrainingHooks(on_epoch=on_epoch, on_step=on_step)
    if keeper is not None:
        hooks = dataclasses.replace(hooks, load=keeper.load, save=keeper.save)
    history = train(
        network,
        *parts,
        loop=training,
        seed=training.seed,
        placement=placement or Placement(select_device(training.device)),
        rate_shares=None if transferred is None else transferred.rate_shares,
        hooks=hooks,
    )
    return FitResult(network, blueprint, history, None, transferred)


def _in_memory(part: ExampleSource) -> Examples:
    from bloomery.models.training.data.batches import Examples

    if isinstance(part, Examples):
        return part
    raise RecipeInvalid(
        f"private training draws each row by chance, and {part.num_rows:,} rows of this width are read from disk",
        required="a training part that fits into memory",
        where="the recipe's training.privacy",
        remedy="take fewer rows, or train without `privacy`",
    )


def _transfer(network: nn.Module, start: InitialWeights, training: Training) -> TransferResult:
    from safetensors.torch import load_file

    from bloomery.models.training.transfer_learning import transfer_weights

    assert training.start_from is not None
    return transfer_weights(network, load_file(settings().path(start.uri)), training.start_from)
