"""Checks that options of the training name layers of the network, before any row is read.

The network is built without its weights. That needs torch, so it is done only if an option names layers.
"""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.data_contracts.errors import EngineMissing, RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import ImageInput, TextInput
from bloomery.models.networks.config import Model
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Training

_GROUPS = ("embeddings", "body")  # which every network has, or whose absence costs little time
_NETWORKS = ("cnn", "lenet", "resnet", "rnn", "transformer", "gpt", "pretrained")
_RECIPE = "the recipe's"
_NUM_TOKENS = 16  # of a vocabulary that is not fitted yet; names of layers do not depend on it


def check_layers(features: Features, model: Model, training: Training) -> Iterator[str]:
    """Yields layers in `freeze` and `lora` that the network does not have."""
    freezes = [part.freeze for part in training.parts]
    is_named = any(freeze and not (isinstance(freeze, tuple) and set(freeze) <= {*_GROUPS}) for freeze in freezes)
    if training.lora is not None and training.lora.targets != "auto":
        is_named = True
    layout = _predict_layout(features, model)
    if not is_named or layout is None or model.kind not in _NETWORKS:
        return
    problem = _find_problem(model, layout, training)
    # Networks that do not suit the rows are refused elsewhere.
    if problem is not None and problem.where.startswith(f"{_RECIPE} training."):
        yield f"{problem.where.removeprefix(f'{_RECIPE} ')}: {problem.found}; required: {problem.required}"


def _find_problem(model: Model, layout: Layout, training: Training) -> RecipeInvalid | None:
    import torch

    from bloomery.models.networks.blueprint import Blueprint, build_network
    from bloomery.models.training.layer_freezing import freeze_parameters
    from bloomery.models.training.lora import find_targets

    if isinstance(model, Pretrained):
        model = model.model_copy(update={"resolved": None})
    blueprint = Blueprint(config=model, layout=layout, num_outputs=2)
    try:
        for part in training.parts:
            with torch.device("meta"):
                network = build_network(blueprint)
            if training.lora is not None:
                find_targets(network, training.lora)
            freeze_parameters(network, part.freeze)
    except EngineMissing:
        return None  # reported where the network is trained, with the name of the package
    except RecipeInvalid as problem:
        return problem
    return None


def _predict_layout(features: Features, model: Model) -> Layout | None:
    """The layout of encoded texts and images, apart from the size of the vocabulary; None of other rows."""
    first = features.inputs[0]
    if isinstance(first, TextInput):
        num_tokens = _NUM_TOKENS
        if isinstance(model, Pretrained):
            num_tokens = int((model.config or {}).get("vocab_size", 0)) + 1
        return Layout(kind="tokens", shape=(first.length,), num_tokens=num_tokens)
    if isinstance(first, ImageInput):
        return Layout(kind="image", shape=first.shape)
    return None
