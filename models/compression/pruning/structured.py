"""Structured pruning: channels, hidden units, heads and layers that leave the network for good."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.config import PRUNABLE, Pruning, find_pruning_obstacle
from bloomery.models.compression.pruning.importance import IMPORTANCE_FUNCTIONS, compute_gradients
from bloomery.models.compression.pruning.recurrent_units import prune_recurrent_units
from bloomery.models.compression.pruning.transformer_blocks import prune_transformer_blocks
from bloomery.models.networks.architecture import PrunableArchitecture
from bloomery.models.networks.architectures import cnn, ft_transformer, lenet, mlp, resnet
from bloomery.models.networks.blueprint import Blueprint, rebuild_network
from bloomery.models.networks.config import Cnn, FtTransformer, Gpt, LeNet, Mlp, Model, ResNet, Rnn, Transformer
from bloomery.models.profiling.macs import relative_cost
from bloomery.models.training.data.batches import Examples

# mypy checks each module against its line.
_CNN: PrunableArchitecture[Cnn, cnn.ConvNet] = cnn
_LENET: PrunableArchitecture[LeNet, lenet.LeNet5] = lenet
_RESNET: PrunableArchitecture[ResNet, resnet.ResidualNetwork] = resnet
_MLP: PrunableArchitecture[Mlp, mlp.Perceptron] = mlp
_FT_TRANSFORMER: PrunableArchitecture[FtTransformer, ft_transformer.TableTransformer] = ft_transformer

_ARCHITECTURES: Mapping[str, PrunableArchitecture[Any, Any]] = {
    "cnn": _CNN,
    "lenet": _LENET,
    "resnet": _RESNET,
    "mlp": _MLP,
    "ft_transformer": _FT_TRANSFORMER,
}
_MOST_OF_A_LAYER = 0.9  # that may leave where layers lose unequal shares
_HALVINGS = 6  # of the range in which the share lies that reaches a target


@contextlib.contextmanager
def load_torch_pruning() -> Iterator[ModuleType]:
    """torch-pruning, which finds coupled layers. Its tracer warns about parameters that are in no group: they stay."""
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
    how: Pruning,
    examples: Examples | None = None,
    tune: Callable[[nn.Module, int], None] = lambda network, rounds: None,
) -> PrunedNetwork:
    """A copy of `network` without what matters least. `network` itself is left as it is.

    Whole groups of coupled weights go together; the outputs of the head stay. The channels that a convolution keeps are
    the nearest multiple of `multiple_of`, if there are that many. With several rounds the same share of what is left
    leaves in each, and `tune` teaches the network (in place) after each one; it is told how many rounds
    there are. What Taylor's importance needs is learnt from `examples`, and so is a target's cost; nothing else is.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets" (importance by norm); Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning" (Taylor, rounds); Fang et al. 2023, "DepGraph: Towards Any
    Structural Pruning" (coupled groups); Han et al. 2015, "Learning both Weights and Connections for Efficient Neural
    Networks", section 3.2 (less dropout for what has less capacity).

    Raises:
        RecipeInvalid: networks of this kind cannot lose this, or never cost as little as the target says.
    """
    _require_prunable(blueprint.config, how)
    share = _share_for_target(network, blueprint, how, examples) if how.share is None else how.share
    smaller = PrunedNetwork(network, blueprint)
    blocks = _blocks_left(network, blueprint, share, how.multiple_of)
    for number in range(1, how.rounds + 1):
        stays = _Stays(1 - (1 - share) ** (1 / how.rounds), blocks, is_last=number == how.rounds)
        smaller = _without(smaller, stays, how, examples)
        tune(smaller.network, how.rounds)
    return smaller


def _require_prunable(config: Model, how: Pruning) -> None:
    why = find_pruning_obstacle(config, how)
    if why is not None:
        raise RecipeInvalid(
            f"a candidate is to be pruned, and {why}",
            required=f"one of {', '.join(PRUNABLE)}, and what its kind can lose",
            where="compression.candidates of the recipe",
            remedy="change `prune` of the candidate or leave it out, or let a `student` take the network's place",
        )


def _share_for_target(network: nn.Module, blueprint: Blueprint, how: Pruning, examples: Examples | None) -> float:
    """The least share whose loss brings the cost down to the target, to 1/64."""
    assert how.target is not None
    assert examples is not None
    ((cost, wanted),) = how.target.items()
    low, high = 0.0, 1.0 - 2.0**-_HALVINGS
    with relative_cost(cost, network, examples.x[:32]) as share_of_cost:

        def reached(share: float) -> float:
            blocks = _blocks_left(network, blueprint, share, how.multiple_of)
            smaller = _without(PrunedNetwork(network, blueprint), _Stays(share, blocks), how, examples)
            return share_of_cost(smaller.network)

        least = reached(high)
        if least > wanted:
            raise RecipeInvalid(
                f"pruned as far as can be, the {cost} are {least:.3g} of those as trained",
                required=f"at most {wanted:g}, the target",
                where="compression.candidates of the recipe",
                remedy="ask for less, name more `parts`, or let a `student` take the network's place",
            )
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if reached(middle) <= wanted else (middle, high)
    return high


class _Stays(NamedTuple):
    """What one round leaves: all but a share, and of the layers that are `prunable`, in their order, these widths at
    least, and in the last round exactly; None of a layer whose width is free.
    """

    share: float
    blocks: Sequence[int | None]
    is_last: bool = True

    def share_of(self, layer: nn.Conv2d | nn.Linear, block: int | None) -> float:
        """What leaves a layer; the pruner passes over one that would lose all, so one output stays."""
        width = int(layer.weight.shape[0])
        left = max(width * (1 - self.share), 1)
        if block is not None:
            left = block if self.is_last else max(left, block)
        return max(1 - (left + 1e-6) / width, 0.0)


def _blocks_left(network: nn.Module, blueprint: Blueprint, share: float, multiple_of: int) -> list[int | None]:
    """For each prunable layer the multiple nearest to what `share` leaves; None if that is less than one block.

    It is of the widths as trained: what is rounded anew in each round adds up.
    """
    if multiple_of == 1:
        return []
    layers = _ARCHITECTURES[blueprint.config.kind].prunable_layers(network)
    return [_block_left(layer, share, multiple_of) if isinstance(layer, nn.Conv2d) else None for layer in layers]


def _block_left(layer: nn.Conv2d, share: float, multiple_of: int) -> int | None:
    left = layer.out_channels * (1 - share)
    if round(left) < multiple_of:
        return None
    return min(multiple_of * round(left / multiple_of), layer.out_channels)


def _without(whole: PrunedNetwork, stays: _Stays, how: Pruning, examples: Examples | None) -> PrunedNetwork:
    smaller, blueprint = copy.deepcopy(whole.network).eval(), whole.blueprint
    if how.importance == "taylor":
        assert examples is not None
        compute_gradients(smaller, examples)
    config, measure = blueprint.config, IMPORTANCE_FUNCTIONS[how.importance]
    if isinstance(config, Rnn):
        config = prune_recurrent_units(smaller, config, stays.share, measure)  # type: ignore[arg-type]
    elif isinstance(config, Transformer | Gpt):
        config = prune_transformer_blocks(smaller.blocks, config, stays.share, measure, how.parts)  # type: ignore[arg-type, type-var]
    else:
        config = _prune_coupled(smaller, blueprint, stays, how)
    if how.dropout is not None:
        config = config.model_copy(update={"dropout": how.dropout})
    pruned = blueprint.model_copy(update={"config": config})
    return PrunedNetwork(
        rebuild_network(pruned, smaller), pruned
    )  # so that no gradient and no bookkeeping stays on the modules


def _prune_coupled(network: nn.Module, blueprint: Blueprint, stays: _Stays, how: Pruning) -> Model:
    """Prune `network` in place by the groups of layers that a tracer finds; the config that builds it now."""
    architecture = _ARCHITECTURES[blueprint.config.kind]
    layers = architecture.prunable_layers(network)
    staying = [layer for layer in network.modules() if _is_root(layer) and not any(layer is one for one in layers)]
    is_global, share = how.scope == "network", stays.share
    blocks = stays.blocks or [None] * len(layers)
    shares = {layer: stays.share_of(layer, block) for layer, block in zip(layers, blocks, strict=True)}
    with load_torch_pruning() as torch_pruning:
        importance = (
            torch_pruning.importance.GroupTaylorImportance()
            if how.importance == "taylor"
            else torch_pruning.importance.GroupMagnitudeImportance(p=2)
        )
        torch_pruning.pruner.BasePruner(
            network,
            torch.zeros(2, *blueprint.layout.shape),
            importance=importance,
            global_pruning=is_global,
            pruning_ratio=share,
            max_pruning_ratio=max(_MOST_OF_A_LAYER, share) if is_global else 1.0,
            pruning_ratio_dict=None if is_global else shares,
            ignored_layers=staying,
        ).step()
    config: Model = architecture.pruned_config(network, blueprint.config)
    return config


def _is_root(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d | nn.Linear)
