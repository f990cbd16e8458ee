"""Structured pruning: channels and hidden units that leave the network for good."""

from __future__ import annotations

import copy
import warnings
from types import ModuleType

import torch
from torch import nn

from data_contracts.errors import RecipeInvalid
from models.networks import cnn, ft_transformer, gpt, lenet, mlp, resnet, rnn, transformer
from models.networks.blueprint import Blueprint, build

# What each kind may lose, and its config afterwards, its own module says.
_KINDS: dict[str, ModuleType] = {
    "cnn": cnn,
    "lenet": lenet,
    "resnet": resnet,
    "mlp": mlp,
    "ft_transformer": ft_transformer,
}
# These slice their own weights.
_SLICED: dict[str, ModuleType] = {"rnn": rnn, "transformer": transformer, "gpt": gpt}


def prune(network: nn.Module, blueprint: Blueprint, share: float) -> tuple[nn.Module, Blueprint]:
    """A copy of `network` without the `share` of channels and hidden units whose weights are smallest.

    Whole groups of coupled weights go together, so the result is a smaller dense network of the same kind, which its
    blueprint describes. The outputs of the head stay. `network` itself is left as it is.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets" (importance by norm); Fang et al. 2023, "DepGraph:
    Towards Any Structural Pruning" (coupled groups).

    Raises:
        RecipeInvalid: networks of this kind cannot be pruned.
    """
    import torch_pruning

    if blueprint.config.kind in _SLICED:
        sliced, config = _SLICED[blueprint.config.kind].prune(network, blueprint.config, share)
        return sliced, blueprint.model_copy(update={"config": config})
    kind = _KINDS.get(blueprint.config.kind)
    if kind is None:
        raise RecipeInvalid(
            f"a candidate is to be pruned, and the network is of kind {blueprint.config.kind}",
            required=f"one of {', '.join((*_KINDS, *_SLICED))}, whose channels and hidden units can leave",
            where="compression.candidates of the recipe",
            remedy="leave `prune` out of the candidates, or choose another model",
        )
    smaller = copy.deepcopy(network).eval()
    layers = kind.prunable(smaller)
    staying = [layer for layer in smaller.modules() if _is_root(layer) and not any(layer is one for one in layers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about parameters that are in no group: they stay
        torch_pruning.pruner.BasePruner(
            smaller,
            torch.zeros(2, *blueprint.layout.shape),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            pruning_ratio_dict={layer: _share_of(layer, share) for layer in layers},
            ignored_layers=staying,
        ).step()
    pruned = blueprint.model_copy(update={"config": kind.config_of(smaller, blueprint.config)})
    # Built afresh, so that nothing of the pruner's bookkeeping stays on the modules.
    rebuilt = build(pruned)
    rebuilt.load_state_dict(smaller.state_dict())
    return rebuilt.eval(), pruned


def _is_root(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Linear)


def _share_of(layer: nn.Conv2d | nn.Linear, share: float) -> float:
    """`share`, or as much as leaves one output: the pruner passes over a layer that would lose all."""
    width = int(layer.weight.shape[0])
    return max(min(share, (width - 1) / width - 1e-6), 0.0)
