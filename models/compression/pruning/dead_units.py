"""Removes channels and hidden units of a sparse network that have no incoming or no outgoing weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bloomery.models.compression.pruning.architectures import ARCHITECTURES
from bloomery.models.compression.pruning.structured import load_torch_pruning
from bloomery.models.networks.architecture import PrunableLayer
from bloomery.models.networks.blueprint import Blueprint, rebuild_network

_KINDS = ("cnn", "lenet", "mlp")


def remove_dead_units(network: nn.Module, blueprint: Blueprint) -> tuple[nn.Module, Blueprint]:
    """A smaller dense network of the same kind without units that have only zero weights before or behind them.

    A unit without outgoing weights does not affect the outputs. One without incoming weights is a constant and is
    removed too, so fine-tune afterwards. Each layer keeps at least one unit. A very sparse network trains faster
    afterwards. Networks other than cnn, lenet and mlp come back unchanged; `network` itself does not change.

    Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks", section 3.5.
    """
    if blueprint.config.kind not in _KINDS:
        return network, blueprint
    architecture = ARCHITECTURES[blueprint.config.kind]
    smaller = copy.deepcopy(network).eval()
    while _remove_from_layers(smaller, architecture.prunable_layers(smaller), torch.zeros(2, *blueprint.layout.shape)):
        pass  # removing a unit can leave the one before it without outgoing weights
    pruned = blueprint.model_copy(update={"config": architecture.pruned_config(smaller, blueprint.config)})
    return rebuild_network(pruned, smaller), pruned


def _remove_from_layers(network: nn.Module, layers: Sequence[PrunableLayer], x: torch.Tensor) -> bool:
    """Remove the dead units of `layers` in place; returns whether there were any."""
    has_removed = False
    with load_torch_pruning() as torch_pruning:
        for layer in layers:
            graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=x)
            remove = (
                torch_pruning.prune_conv_out_channels
                if isinstance(layer, nn.Conv2d)
                else torch_pruning.prune_linear_out_channels
            )
            width = int(layer.weight.shape[0])
            dead_units = [unit for unit in range(width) if _is_dead(graph.get_pruning_group(layer, remove, [unit]))]
            dead_units = dead_units[: width - 1]
            if dead_units:
                graph.get_pruning_group(layer, remove, dead_units).prune()
                has_removed = True
    return has_removed


def _is_dead(group: Any) -> bool:
    """Whether all incoming or all outgoing weights of the unit are zero."""
    incoming, outgoing = [], []
    for dependency, positions in group:
        module = dependency.target.module
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if "out_channels" in dependency.handler.__name__:
            incoming.append(module.weight[positions])
        else:
            outgoing.append(module.weight[:, positions])
    return any(not any(bool(weight.any()) for weight in weights) for weights in (incoming, outgoing))
