"""Fits a network to encoded rows, for the train stage and for each trial of a hyperparameter search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.records.output_units import max_classes
from bloomery.data_contracts.records.records import Dataset, InitialWeights
from bloomery.data_contracts.records.weight_transfer import WeightTransfer
from bloomery.models.networks.config import Fused, Model, TabM, vector_width
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.device import select_device
from bloomery.tasks.infrastructure.settings import settings

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.features.encoder import Encoder
    from bloomery.models.features.labels import StandardUnits
    from bloomery.models.networks.blueprint import Blueprint
    from bloomery.models.training.data.batches import Examples, ExampleSource
    from bloomery.models.training.differential_privacy import PrivacySpent
    from bloomery.models.training.loop import EpochResult, Placement, TrainingHooks
    from bloomery.models.training.lora import Adapter
    from bloomery.models.training.optimization.score_measure import ScoreMeasure
    from bloomery.models.training.transfer_learning import TransferResult

_MAX_REPORTED_ROWS = 50_000
_NUM_QUANTILE_ROWS = 100_000  # training rows whose quantiles are taken


class TrainingSplits(NamedTuple):
    """The splits that training may see."""

    train: ExampleSource
    val: ExampleSource
    units: StandardUnits | None = None  # of a regression's labels
    encoder: Encoder | None = None
    unlabelled: ExampleSource | None = None  # further training rows, which self-supervised stages read

    @property
    def pretraining(self) -> ExampleSource:
        """The rows of self-supervised stages: those of the training split, and those without a label."""
        from bloomery.models.training.data.batches import join_rows

        return self.train if self.unlabelled is None else join_rows(self.train, self.unlabelled)


class FitResult(NamedTuple):
    """A trained network in evaluation mode, and its history."""

    network: nn.Module
    blueprint: Blueprint
    history: list[EpochResult]
    privacy_spent: PrivacySpent | None
    transfer: TransferResult | None
    adapter: Adapter | None = None  # low-rank matrices, which the network's weights contain


def checkpoint_folder(key: str) -> Path:
    """The folder with the checkpoints of a train stage that has not finished."""
    return settings().home / "checkpoints" / key


def read_splits(dataset: Dataset, training: Training | None = None) -> TrainingSplits:
    """Opens the splits; rows without a label only if a stage of `training` learns from them."""
    from bloomery.models.features.encoder import read_encoder
    from bloomery.models.training.data.batches import open_examples

    paths = (settings().path(split.uri) for split in (dataset.train, dataset.val))
    train, val = (open_examples(path, dataset.key, dataset.layout) for path in paths)
    unlabelled = None
    if dataset.unlabelled is not None and training is not None and training.pretrains:
        unlabelled = open_examples(settings().path(dataset.unlabelled.uri), dataset.key, dataset.layout)
    encoder = read_encoder(settings().path(dataset.encoder_uri))
    return TrainingSplits(train, val, encoder.units, encoder, unlabelled)


def sample_validation_rows(dataset: Dataset, val: ExampleSource) -> Examples:
    """The validation rows to report on: all, or an even sample where they do not fit into memory."""
    from bloomery.models.training.data.batches import Examples, sample_examples

    if isinstance(val, Examples):
        return val
    return sample_examples(settings().path(dataset.val.uri), dataset.key, dataset.layout, _MAX_REPORTED_ROWS)


def make_blueprint(dataset: Dataset, model: Model) -> Blueprint:
    from bloomery.models.networks.architectures.fused import with_branches
    from bloomery.models.networks.blueprint import Blueprint

    if isinstance(model, Fused):
        model = with_branches(model, dataset.layout)
    num_outputs = 1 if dataset.task == "regression" else len(dataset.outputs or dataset.classes)
    if dataset.class_outputs:
        num_outputs = len(dataset.class_outputs) * max_classes(dataset.class_outputs)
    if dataset.task == "embedding":
        width = vector_width(model)
        assert width is not None  # networks without vectors are refused when the recipe is read
        num_outputs = width
    return Blueprint(config=model, layout=dataset.layout, task=dataset.task, num_outputs=num_outputs)


def score_measure(dataset: Dataset, training: Training, splits: TrainingSplits) -> ScoreMeasure | None:
    """The measure of the recipe's score; None of the default score, in standard units."""
    from bloomery.models.training.optimization.score_measure import build_measure

    return build_measure(training.score, dataset.task, splits.units, dataset.classes)


def fit_network(
    splits: TrainingSplits,
    blueprint: Blueprint,
    training: Training,
    initial_weights: InitialWeights | None = None,
    *,
    hooks: TrainingHooks | None = None,
    placement: Placement | None = None,
) -> FitResult:
    """Trains the network. The same arguments give the same weights, bit for bit, on a processor of the same kind.

    If `hooks` load and save checkpoints, a killed training resumes from the last one and ends with the same bits.
    Private training saves no checkpoints: a resumed run would have to account for the privacy budget of both runs.
    """
    from bloomery.models.networks.blueprint import build_network
    from bloomery.models.training.data.batches import TrainingData
    from bloomery.models.training.differential_privacy import train_privately
    from bloomery.models.training.layer_freezing import freeze_parameters, rate_shares
    from bloomery.models.training.loop import Placement, TrainingHooks, train
    from bloomery.models.training.lora import add_adapters, merge_adapters
    from bloomery.models.training.optimization.score_measure import build_measure
    from bloomery.models.training.stage_setup import stage_setup
    from bloomery.models.training.stages import train_in_stages
    from bloomery.tasks.train.imported_branches import load_imported_branches

    hooks = hooks or TrainingHooks()
    placement = placement or Placement(select_device(training.device))
    blueprint = _with_statistics(blueprint, splits.train)
    classes = () if splits.encoder is None else splits.encoder.classes
    measure = build_measure(training.score, blueprint.task, splits.units, classes)
    data = TrainingData(splits.train, splits.val, training.seed, measure)
    network = build_network(blueprint)
    load_imported_branches(network, blueprint, splits.train)
    _learn_importances(network, splits.train)
    transfer = None if initial_weights is None else _transfer(network, initial_weights, training, splits.encoder)
    adapted = None if training.lora is None else add_adapters(network, training.lora)
    if training.stages:
        set_up = stage_setup(training, blueprint, data, splits.pretraining if training.pretrains else splits.train)
        history = train_in_stages(network, training, set_up, placement=placement, hooks=hooks)
    else:
        freeze_parameters(network, training.freeze)
        if training.privacy is not None:
            history, spent = train_privately(network, data, training, training.privacy, on_epoch=hooks.on_epoch)
            return FitResult(network, blueprint, history, spent, transfer)
        shares = None if training.discount == 1 else rate_shares(network, training.discount)
        history = train(network, data, training, placement=placement, rate_shares=shares, hooks=hooks)
    adapter = None if adapted is None else merge_adapters(adapted, network)
    return FitResult(network, blueprint, history, None, transfer, adapter)


def require_valid_layers(splits: TrainingSplits, blueprint: Blueprint, training: Training) -> None:
    """Raises RecipeInvalid if an option of the training names layers that the network does not have."""
    from bloomery.models.training import stage_setup

    stage_setup.require_valid_layers(training, _with_statistics(blueprint, splits.train), splits.train)


def _with_statistics(blueprint: Blueprint, train: ExampleSource) -> Blueprint:
    """The blueprint with what the network needs to know of the training rows: the quantiles of TabM's numbers."""
    from bloomery.models.networks.architectures.tabm import compute_edges
    from bloomery.models.training.data.batches import even_sample

    config = blueprint.config
    if not isinstance(config, TabM):
        return blueprint
    x, _ = next(train.iterate())
    edges = compute_edges(even_sample(x, _NUM_QUANTILE_ROWS), blueprint.layout, config.bins)
    return blueprint.model_copy(update={"config": config.model_copy(update={"edges": edges})})


def _learn_importances(network: nn.Module, train: ExampleSource) -> None:
    """Sets what token bags need to know of the training rows: how rare each token is."""
    from bloomery.models.networks.architectures.token_bag import TokenBagNetwork, learn_importances

    if any(isinstance(module, TokenBagNetwork) for module in network.modules()):
        x, _ = next(train.iterate())
        learn_importances(network, x)


def _transfer(
    network: nn.Module, initial_weights: InitialWeights, training: Training, encoder: Encoder | None
) -> TransferResult:
    from bloomery.models.training.transfer_learning import transfer_weights
    from bloomery.tasks.train.initial_weights import read_weights
    from bloomery.tasks.train.weight_names import names_of_encoder, read_names

    assert training.start_from is not None
    weights = read_weights(settings().path(initial_weights.uri))
    names, source_names = names_of_encoder(encoder), read_names(initial_weights.source)
    return transfer_weights(network, weights, training.start_from, names, source_names)


def describe_transfer(result: TransferResult | None) -> WeightTransfer | None:
    """The record of what a training took over; None without initial weights."""
    if result is None:
        return None
    return WeightTransfer(
        num_loaded=len(result.loaded),
        num_mapped=len(set(result.mapped.values()) & set(result.loaded)),
        adapted=tuple(result.adapted),
        initialised=result.initialised,
        num_unused=len(result.unused),
    )
