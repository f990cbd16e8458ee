"""What each stage of a training learns from: the rows of the task, or rows without labels and temporary layers."""

from __future__ import annotations

import dataclasses

from torch import nn

from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.training.config import Training
from bloomery.models.training.data.batches import ExampleSource, TrainingData
from bloomery.models.training.layer_freezing import freeze_parameters
from bloomery.models.training.lora import add_adapters, find_targets, frozen_adapters, has_trainable_adapter
from bloomery.models.training.pretraining import build_objective, find_tokens, freeze_unused, require_different_views
from bloomery.models.training.stages import SetUp, StageSetup


def stage_setup(training: Training, blueprint: Blueprint, data: TrainingData, pretraining: ExampleSource) -> SetUp:
    """Returns the function that sets a stage up: `data` for the task, `pretraining` for a self-supervised stage."""
    without_labels = dataclasses.replace(data, train=pretraining, measure=None, has_row_losses=True)

    def set_up(network: nn.Module, number: int, part: Training) -> StageSetup:
        objective = training.stages[number].objective
        if objective == "task":
            return StageSetup(network, part, data)
        module = build_objective(objective, network, blueprint.layout, part, find_tokens(blueprint.config))
        freeze_unused(module, network, pretraining.example_batch())
        return StageSetup(module, part.without_labels(), without_labels)

    return set_up


def require_valid_layers(training: Training, blueprint: Blueprint, rows: ExampleSource) -> None:
    """Raises RecipeInvalid if an option names layers or objectives that the network does not have."""
    if not any(part.freeze for part in training.parts) and not training.pretrains and training.lora is None:
        return
    set_up = stage_setup(training, blueprint, TrainingData(rows, rows), rows)
    targets: list[str] = []
    adapters_learn = training.lora is None
    for number, part in enumerate(training.parts):
        network = build_network(blueprint)
        if training.lora is not None:
            targets = find_targets(network, training.lora)
            add_adapters(network, training.lora)
        freeze_parameters(network, part.freeze)
        adapters_learn = adapters_learn or has_trainable_adapter(network, targets)
        if training.stages:
            require_different_views(set_up(network, number, part).module, blueprint.layout)
    if not adapters_learn:
        raise frozen_adapters(targets)
