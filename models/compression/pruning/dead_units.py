"""Channels and hidden units that say nothing any more, taken out of a sparse network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bloomery.models.compression.pruning.structured import load_torch_pruning
from bloomery.models.networks.architecture import PrunableArchitecture
from bloomery.models.networks.architectures import cnn, lenet, mlp
from bloomery.models.networks.blueprint import Blueprint, rebuild_network

_ARCHITECTURES: Mapping[str, PrunableArchitecture[Any, Any]] = {"cnn": cnn, "lenet": lenet, "mlp": mlp}


def remove_dead_units(network: nn.Module, blueprint: Blueprint) -> tuple[nn.Module, Blueprint]:
    """A smaller dense network of the same kind without the units that no weight leads to or from.

    A unit without weights behind it is read by nobody: the outputs are the same without it. One without weights before
    it is a constant, which goes too, so fine-tune afterwards. Each layer keeps at least one unit. Where many weights
    are zero most units are dead, and what is left trains faster. Other kinds of network than cnn, lenet and mlp are
    given back as they are, and `network` itself is left as it is.

    Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3.5.
    """
    architecture = _ARCHITECTURES.get(blueprint.config.kind)
    if architecture is None:
        return network, blueprint
    smaller = copy.deepcopy(network).eval()
    while _removed(smaller, architecture.prunable_layers(smaller), torch.zeros(2, *blueprint.layout.shape)):
        pass  # a unit may die with the last one that it led to
    found = blueprint.model_copy(update={"config": architecture.pruned_config(smaller, blueprint.config)})
    return rebuild_network(found, smaller), found


def _removed(network: nn.Module, layers: list[Any], x: torch.Tensor) -> bool:
    """Whether any unit of `layers` was dead; afterwards it is gone."""
    removed = False
    with load_torch_pruning() as torch_pruning:
        for layer in layers:
            graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=x)
            remove = (
                torch_pruning.prune_conv_out_channels
                if isinstance(layer, nn.Conv2d)
                else torch_pruning.prune_linear_out_channels
            )
            width = int(layer.weight.shape[0])
            dead = [unit for unit in range(width) if _is_dead(graph.get_pruning_group(layer, remove, [unit]))]
            dead = dead[: width - 1]
            if dead:
                graph.get_pruning_group(layer, remove, dead).prune()
                removed = True
    return removed


def _is_dead(group: Any) -> bool:
    """Whether all weights that lead to the unit, or all that lead from it, are zero."""
    before, behind = [], []
    for dependency, places in group:
        module = dependency.target.module
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if "out_channels" in dependency.handler.__name__:
            before.append(module.weight[places])
        else:
            behind.append(module.weight[:, places])
    return any(not any(bool(weight.any()) for weight in weights) for weights in (before, behind))
