"""Transfer learning: initial weights of another network, frozen layers, discriminative learning rates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.training.config import StartFrom


class TransferResult(NamedTuple):
    """The loaded and the newly initialised weights by name, and each parameter's fraction of the learning rate."""

    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    rate_shares: dict[str, float]


def transfer_weights(network: nn.Module, weights: dict[str, torch.Tensor], start: StartFrom) -> TransferResult:
    """Loads every weight with a matching name and shape into `network`, and freezes parameters.

    The learning rate of each layer is `discount` times that of the next layer, so that general features change least.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.2.

    Raises:
        RecipeInvalid: no weight matches, `freeze` matches no parameter, or every parameter is frozen.
    """
    own_weights = network.state_dict()
    matching = {
        name: weight
        for name, weight in weights.items()
        if name in own_weights and own_weights[name].shape == weight.shape
    }
    if not any(name in dict(network.named_parameters()) for name in matching):
        examples_of_weights = ", ".join(
            f"{name} {list(weight.shape)}" for name, weight in list(own_weights.items())[:3]
        )
        raise RecipeInvalid(
            f"none of the {len(weights)} weights of {start.network} matches a weight of this network in name and shape",
            required=f"weights such as {examples_of_weights}",
            where="the recipe's training.start_from",
            remedy="start from a network of the same kind and widths",
        )
    network.load_state_dict(matching, strict=False)
    _freeze(network, start.freeze)
    loaded = tuple(name for name in own_weights if name in matching)
    return TransferResult(
        loaded, tuple(name for name in own_weights if name not in matching), _rate_shares(network, start.discount)
    )


def frozen_modules(network: nn.Module) -> list[nn.Module]:
    """Modules with frozen parameters only. They stay in evaluation mode, as batch normalisation needs."""
    return [
        module
        for module in network.modules()
        if (own_weights := list(module.parameters())) and not any(parameter.requires_grad for parameter in own_weights)
    ]


def _freeze(network: nn.Module, prefixes: tuple[str, ...]) -> None:
    parameters = dict(network.named_parameters())
    for prefix in prefixes:
        matching_names = [name for name in parameters if name == prefix or name.startswith(f"{prefix}.")]
        for name in matching_names:
            parameters[name].requires_grad_(False)
        if not matching_names:
            top_modules = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters))
            raise RecipeInvalid(
                f"no parameter name begins with {prefix!r}",
                required=f"one of {top_modules}, or a longer prefix such as {next(iter(parameters))}",
                where="the recipe's training.start_from.freeze",
                remedy="correct the prefix",
            )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise RecipeInvalid(
            "every parameter is frozen",
            required="at least one trainable parameter",
            where="the recipe's training.start_from.freeze",
            remedy="do not freeze the head",
        )


def _rate_shares(network: nn.Module, discount: float) -> dict[str, float]:
    """Learning rates by parameter. A layer is a child of the network, or an element of a list among its children."""
    layers: dict[str, list[str]] = {}
    for name, _ in network.named_parameters():
        child, *submodules = name.split(".")
        is_in_list = bool(submodules) and submodules[0].isdigit()
        layers.setdefault(f"{child}.{submodules[0]}" if is_in_list else child, []).append(name)
    return {
        name: discount ** (len(layers) - 1 - position)
        for position, names in enumerate(layers.values())
        for name in names
    }
