"""Structured pruning: removes channels, hidden units, heads and layers from a network permanently."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.branches import list_branches
from bloomery.models.compression.config import PRUNABLE, Pruning
from bloomery.models.compression.obstacles import find_pruning_obstacle
from bloomery.models.compression.pruning.architectures import ARCHITECTURES
from bloomery.models.compression.pruning.cost_target import find_pruning_ratio, relative_cost
from bloomery.models.compression.pruning.importance import IMPORTANCE_FUNCTIONS, compute_gradients
from bloomery.models.compression.pruning.pretrained_layers import prune_pretrained
from bloomery.models.compression.pruning.recurrent_units import prune_recurrent_units
from bloomery.models.compression.pruning.transformer_blocks import prune_transformer_blocks
from bloomery.models.networks.architecture import PrunableLayer
from bloomery.models.networks.architectures.fused import FusedNetwork
from bloomery.models.networks.blueprint import Blueprint, rebuild_network
from bloomery.models.networks.config import Gpt, Model, Rnn, Transformer
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.data.batches import Examples

_MAX_LAYER_RATIO = 0.9  # where layers lose unequal shares
_COST_ROWS = 32


@contextlib.contextmanager
def load_torch_pruning() -> Iterator[ModuleType]:
    """The package torch-pruning, which finds coupled layers, without its warnings about parameters in no group."""
    import torch_pruning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield torch_pruning


class PrunedNetwork(NamedTuple):
    """A dense network of the same kind, in evaluation mode, and the blueprint that builds it."""

    network: nn.Module
    blueprint: Blueprint


def prune_network(
    network: nn.Module,
    blueprint: Blueprint,
    pruning: Pruning,
    examples: Examples | None = None,
    fine_tune: Callable[[nn.Module, int], None] = lambda network, num_rounds: None,
) -> PrunedNetwork:
    """A copy of `network` without its least important structures. `network` itself does not change.

    Coupled weights are removed together; the outputs of the head stay. With `round_to`, convolutions keep the nearest
    multiple, if they have so many channels. Each of several rounds removes the same share of what is left; after each,
    `fine_tune` trains the network in place and gets the number of rounds. Only Taylor importance and cost targets read
    `examples`.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets" (importance by norm); Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning" (Taylor, rounds); Fang et al. 2023, "DepGraph: Towards Any
    Structural Pruning" (coupled groups); Han et al. 2015, "Learning both Weights and Connections for Efficient Neural
    Networks", section 3.2 (less dropout for less capacity).

    Raises:
        RecipeInvalid: networks of this kind cannot be pruned like this, or never reach the cost target.
    """
    _require_prunable(blueprint.config, pruning)
    ratio = _ratio_for_target(network, blueprint, pruning, examples) if pruning.ratio is None else pruning.ratio
    pruned = PrunedNetwork(network, blueprint)
    rounded_widths = _rounded_widths(network, blueprint, ratio, pruning.round_to)
    for number in range(1, pruning.rounds + 1):
        round_ratio = 1 - (1 - ratio) ** (1 / pruning.rounds)
        widths = _RoundWidths(round_ratio, rounded_widths, is_last=number == pruning.rounds)
        pruned = _prune_once(pruned, widths, pruning, examples)
        fine_tune(pruned.network, pruning.rounds)
    return pruned


def _require_prunable(config: Model, pruning: Pruning) -> None:
    obstacle = find_pruning_obstacle(config, pruning)
    if obstacle is not None:
        raise RecipeInvalid(
            f"a candidate cannot be pruned: {obstacle}",
            required=f"one of {', '.join(PRUNABLE)}, and structures that its kind has",
            where="compression.candidates of the recipe",
            remedy="change `prune` of the candidate or leave it out, or let a `student` replace the network",
        )


def _ratio_for_target(network: nn.Module, blueprint: Blueprint, pruning: Pruning, examples: Examples | None) -> float:
    assert pruning.target is not None
    assert examples is not None
    ((cost, target),) = pruning.target.items()
    with relative_cost(cost, network, examples.x[:_COST_ROWS]) as measure:

        def cost_at(ratio: float) -> float:
            widths = _RoundWidths(ratio, _rounded_widths(network, blueprint, ratio, pruning.round_to))
            return measure(_prune_once(PrunedNetwork(network, blueprint), widths, pruning, examples).network)

        return find_pruning_ratio(cost, target, cost_at)


class _RoundWidths(NamedTuple):
    """The widths that one round leaves.

    Attributes:
        ratio: share of the outputs that the round removes.
        rounded: for each prunable layer its final width, or None where it is free; empty if all are free.
        is_last: the last round reaches the final widths; earlier ones stay at or above them.
    """

    ratio: float
    rounded: Sequence[int | None]
    is_last: bool = True

    def layer_ratio(self, layer: PrunableLayer, rounded: int | None) -> float:
        """The ratio for one layer. One output stays: the pruner skips a layer that would lose all."""
        width = int(layer.weight.shape[0])
        num_left = max(width * (1 - self.ratio), 1)
        if rounded is not None:
            num_left = rounded if self.is_last else max(num_left, rounded)
        return max(1 - (num_left + 1e-6) / width, 0.0)


def _rounded_widths(network: nn.Module, blueprint: Blueprint, ratio: float, round_to: int) -> list[int | None]:
    """For each prunable layer the multiple of `round_to` nearest to what `ratio` leaves; None if that is 0.

    They follow from the trained widths: rounding errors of several rounds would add up.
    """
    if round_to == 1:
        return []
    if isinstance(network, FusedNetwork):
        return [
            width
            for branch in list_branches(network, blueprint)
            if branch.blueprint.config.kind in ARCHITECTURES
            for width in _rounded_widths(branch.network, branch.blueprint, ratio, round_to)
        ]
    layers = ARCHITECTURES[blueprint.config.kind].prunable_layers(network)
    return [_rounded_width(layer, ratio, round_to) if isinstance(layer, nn.Conv2d) else None for layer in layers]


def _rounded_width(layer: nn.Conv2d, ratio: float, round_to: int) -> int | None:
    num_left = layer.out_channels * (1 - ratio)
    if round(num_left) < round_to:
        return None
    return min(round_to * round(num_left / round_to), layer.out_channels)


def _prune_once(
    original: PrunedNetwork, widths: _RoundWidths, pruning: Pruning, examples: Examples | None
) -> PrunedNetwork:
    network, blueprint = copy.deepcopy(original.network).eval(), original.blueprint
    if pruning.importance == "taylor":
        assert examples is not None
        compute_gradients(network, examples)
    config = _prune_in_place(network, blueprint, widths, pruning)
    pruned = blueprint.model_copy(update={"config": config})
    # A new network has neither gradients nor the pruner's state.
    return PrunedNetwork(rebuild_network(pruned, network), pruned)


def _prune_in_place(network: nn.Module, blueprint: Blueprint, widths: _RoundWidths, pruning: Pruning) -> Model:
    """Prunes `network`; returns the config that builds it now."""
    config, importance = blueprint.config, IMPORTANCE_FUNCTIONS[pruning.importance]
    if isinstance(network, FusedNetwork):
        config = _prune_branches(network, blueprint, widths, pruning)
    elif isinstance(config, Rnn):
        config = prune_recurrent_units(network, config, widths.ratio, importance)  # type: ignore[arg-type]
    elif isinstance(config, Pretrained):
        config = prune_pretrained(network, config, widths.ratio, importance, pruning)  # type: ignore[arg-type]
    elif isinstance(config, Transformer | Gpt):
        config = prune_transformer_blocks(network.blocks, config, widths.ratio, importance, pruning.structures)  # type: ignore[arg-type, type-var]
    else:
        config = _prune_coupled(network, blueprint, widths, pruning)
    return config if pruning.dropout is None else config.model_copy(update={"dropout": pruning.dropout})


def _prune_branches(network: FusedNetwork, blueprint: Blueprint, widths: _RoundWidths, pruning: Pruning) -> Model:
    """Prunes each branch by its own kind; those that cannot be pruned like this stay, and so does the join."""
    rounded = list(widths.rounded)
    branches: dict[str, Model] = {}
    for branch, branch_blueprint, place in list_branches(network, blueprint):
        config = branch_blueprint.config
        num_rounded = 0
        if rounded and config.kind in ARCHITECTURES:
            num_rounded = len(ARCHITECTURES[config.kind].prunable_layers(branch))
        branch_widths = widths._replace(rounded=rounded[:num_rounded])
        rounded = rounded[num_rounded:]
        if find_pruning_obstacle(config, pruning) is None:
            config = _prune_in_place(branch, branch_blueprint, branch_widths, pruning)
        branches[place.part.name] = config
    return blueprint.config.model_copy(update={"branches": branches})


def _prune_coupled(network: nn.Module, blueprint: Blueprint, widths: _RoundWidths, pruning: Pruning) -> Model:
    """Prune the groups of coupled layers of `network` in place; returns the config that builds it now."""
    architecture = ARCHITECTURES[blueprint.config.kind]
    layers = architecture.prunable_layers(network)
    ignored_layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not any(module is layer for layer in layers)
    ]
    is_global, ratio = pruning.scope == "global", widths.ratio
    rounded_widths = widths.rounded or [None] * len(layers)
    ratios = {layer: widths.layer_ratio(layer, rounded) for layer, rounded in zip(layers, rounded_widths, strict=True)}
    with load_torch_pruning() as torch_pruning:
        importance = (
            torch_pruning.importance.GroupTaylorImportance()
            if pruning.importance == "taylor"
            else torch_pruning.importance.GroupMagnitudeImportance(p=2)
        )
        torch_pruning.pruner.BasePruner(
            network,
            torch.zeros(2, *blueprint.layout.shape),
            importance=importance,
            global_pruning=is_global,
            pruning_ratio=ratio,
            max_pruning_ratio=max(_MAX_LAYER_RATIO, ratio) if is_global else 1.0,
            pruning_ratio_dict=None if is_global else ratios,
            ignored_layers=ignored_layers,
        ).step()
    config: Model = architecture.pruned_config(network, blueprint.config)
    return config
