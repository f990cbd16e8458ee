"""Structured pruning: channels and hidden units that leave the network for good."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from models.cnn import ConvNet, config_of
from models.networks import Blueprint, build


def prune(network: nn.Module, blueprint: Blueprint, share: float) -> tuple[nn.Module, Blueprint]:
    """A copy of `network` without the `share` of channels and hidden units whose weights are smallest.

    Whole groups of coupled weights go together, so the result is a smaller dense network of the same kind, which its
    blueprint describes. The classes of the head stay. `network` itself is left as it is.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets" (importance by norm); Fang et al. 2023, "DepGraph:
    Towards Any Structural Pruning" (coupled groups).
    """
    import torch_pruning

    smaller = copy.deepcopy(network)
    if not isinstance(smaller, ConvNet):
        raise TypeError(f"no structured pruning for {type(network).__name__}")
    example = torch.zeros(2, *blueprint.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about parameters that are not grouped: there are none
        torch_pruning.pruner.BasePruner(
            smaller,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            pruning_ratio_dict={layer: _share_of(layer, share) for layer in _layers(smaller)},
            ignored_layers=[smaller.head],
        ).step()
    pruned = blueprint.model_copy(update={"config": config_of(smaller, blueprint.config)})
    # Built afresh, so that nothing of the pruner's bookkeeping stays on the modules.
    rebuilt = build(pruned)
    rebuilt.load_state_dict(smaller.state_dict())
    return rebuilt.eval(), pruned


def _layers(network: ConvNet) -> list[nn.Conv2d | nn.Linear]:
    """The layers whose outputs may go."""
    return [*(block[0] for block in network.blocks), network.hidden]  # type: ignore[index]


def _share_of(layer: nn.Conv2d | nn.Linear, share: float) -> float:
    """`share`, or as much as leaves one output: the pruner passes over a layer that would lose all."""
    width = int(layer.weight.shape[0])
    return max(min(share, (width - 1) / width - 1e-6), 0.0)
