"""Checks that options of the training name layers of the network, and rows of its weights, before any row is read.

The network is built without its weights. That needs torch, so it is done only if an option names layers.
"""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.data_contracts.errors import EngineMissing, RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout, Task, predicts_numbers
from bloomery.flows.recipe.architecture_checks import predict_layout
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import TextInput
from bloomery.models.networks.config import Model, vector_width
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Training

_GROUPS = ("embeddings", "body")  # which every network has, or whose absence costs little time
_NETWORKS = ("cnn", "lenet", "resnet", "rnn", "transformer", "gpt", "pretrained")
_RECIPE = "the recipe's"


def check_layers(features: Features, model: Model, training: Training) -> Iterator[str]:
    """Yields layers in `freeze` and `lora`, and rows in `start_from.adapt`, that the network does not have."""
    yield from _check_adaptations(features, training)
    freezes = [part.freeze for part in training.parts]
    is_named = any(freeze and not (isinstance(freeze, tuple) and set(freeze) <= {*_GROUPS}) for freeze in freezes)
    if training.lora is not None and (training.lora.targets != "auto" or any(freezes)):
        is_named = True
    if isinstance(model, Pretrained) and features.task == "embedding":  # without a head, `body` is all of the network
        is_named = any(freezes) or is_named
    layout = predict_layout(features.inputs[0], model)
    if not is_named or layout is None or model.kind not in _NETWORKS:
        return
    problem = _find_problem(model, features.task, layout, training)
    # Networks that do not suit the rows are refused elsewhere.
    if problem is not None and problem.where.startswith(f"{_RECIPE} training."):
        yield f"{problem.where.removeprefix(f'{_RECIPE} ')}: {problem.found}; required: {problem.required}"


def _check_adaptations(features: Features, training: Training) -> Iterator[str]:
    adapt = () if training.start_from is None else training.start_from.adapt
    if "outputs" in adapt and (predicts_numbers(features.task) or features.task == "embedding"):
        noun = "numbers" if predicts_numbers(features.task) else "vectors"
        yield f"training.start_from.adapt: `outputs` takes rows of equal classes, but {noun} have none; leave it out"
    if "vocabulary" in adapt and not any(isinstance(source, TextInput) for source in features.inputs):
        yield "training.start_from.adapt: `vocabulary` takes rows of equal tokens, but no input is a text; leave it out"


def _find_problem(model: Model, task: Task, layout: Layout, training: Training) -> RecipeInvalid | None:
    import torch

    from bloomery.models.networks.blueprint import Blueprint, build_network
    from bloomery.models.training.layer_freezing import freeze_parameters
    from bloomery.models.training.lora import find_targets, frozen_adapters, has_trainable_adapter

    if isinstance(model, Pretrained):
        model = model.model_copy(update={"resolved": None})
    num_outputs = (vector_width(model) or 2) if task == "embedding" else 2
    blueprint = Blueprint(config=model, layout=layout, task=task, num_outputs=num_outputs)
    targets: list[str] = []
    adapters_learn = training.lora is None
    try:
        for part in training.parts:
            with torch.device("meta"):
                network = build_network(blueprint)
            if training.lora is not None:
                targets = find_targets(network, training.lora)
            freeze_parameters(network, part.freeze)
            adapters_learn = adapters_learn or has_trainable_adapter(network, targets)
    except EngineMissing:
        return None  # reported where the network is trained, with the name of the package
    except RecipeInvalid as problem:
        return problem
    return None if adapters_learn else frozen_adapters(targets)
