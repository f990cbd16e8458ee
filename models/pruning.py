"""Structured pruning: channels and hidden units that leave the network for good."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from models import cnn, mlp
from models.cnn import ConvNet
from models.config import Cnn, Mlp
from models.mlp import Perceptron
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
    if not isinstance(smaller, ConvNet | Perceptron):
        raise TypeError(f"no structured pruning for {type(network).__name__}")
    layers = cnn.prunable(smaller) if isinstance(smaller, ConvNet) else mlp.prunable(smaller)
    example = torch.zeros(2, *blueprint.input_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about parameters that are not grouped: there are none
        torch_pruning.pruner.BasePruner(
            smaller,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            pruning_ratio_dict={layer: _share_of(layer, share) for layer in layers},
            ignored_layers=[smaller.head],
        ).step()
    pruned = blueprint.model_copy(update={"config": _config_of(smaller, blueprint.config)})
    # Built afresh, so that nothing of the pruner's bookkeeping stays on the modules.
    rebuilt = build(pruned)
    rebuilt.load_state_dict(smaller.state_dict())
    return rebuilt.eval(), pruned


def _config_of(network: ConvNet | Perceptron, config: Cnn | Mlp) -> Cnn | Mlp:
    match network, config:
        case ConvNet(), Cnn():
            return cnn.config_of(network, config)
        case Perceptron(), Mlp():
            return mlp.config_of(network, config)
    raise TypeError(f"{type(network).__name__} was not built from a config of kind {config.kind}")


def _share_of(layer: nn.Conv2d | nn.Linear, share: float) -> float:
    """`share`, or as much as leaves one output: the pruner passes over a layer that would lose all."""
    width = int(layer.weight.shape[0])
    return max(min(share, (width - 1) / width - 1e-6), 0.0)
