"""Transfer learning: initial weights of another network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.training.transfer_config import StartFrom


class TransferResult(NamedTuple):
    """The names of the loaded and of the newly initialised weights."""

    loaded: tuple[str, ...]
    initialised: tuple[str, ...]


def transfer_weights(network: nn.Module, weights: dict[str, torch.Tensor], start: StartFrom) -> TransferResult:
    """Loads every weight with a matching name and shape into `network`.

    Raises:
        RecipeInvalid: no weight matches.
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
    loaded = tuple(name for name in own_weights if name in matching)
    return TransferResult(loaded, tuple(name for name in own_weights if name not in matching))
