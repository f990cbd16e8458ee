"""Prunes units, channels, heads and whole layers of a pretrained network, and keeps some layers for a student.

Shapes: N heads, D width of a head, H feed-forward units of a layer or channels in a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.importance import ImportanceFunction
from bloomery.models.compression.pruning.transformer_blocks import (
    keep_channels,
    keep_inputs,
    keep_outputs,
    most_important,
    total_importance,
)
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.body_families import FAMILIES
from bloomery.models.networks.body_layers import (
    LinearMaps,
    UnitNames,
    get_map,
    get_norm,
    head_width,
    keep_layers,
    linear_maps,
    list_layers,
    list_units,
    measure_shape,
)
from bloomery.models.networks.pretrained_config import Pretrained, without_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MIN_SHARE = 0.1  # that each layer keeps where layers are compared with each other


def prune_pretrained(
    network: PretrainedNetwork, config: Pretrained, ratio: float, importance: ImportanceFunction, pruning: Pruning
) -> Pretrained:
    """Remove the `ratio` of the least important of each of the structures from `network` in place.

    Layers are removed first, by the importance of all their weights. Then each remaining layer loses the same share of
    its heads and units; with `scope: global` those of all layers are compared, and a layer keeps at least a tenth. The
    width of the states stays. Units of a convolutional network are the channels inside its blocks.

    Returns:
        A config that builds a network of this shape, without the checkpoint's weights.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 2 (heads by their importance); Men
    et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (whole layers).
    """
    body = network.body
    if "layers" in pruning.structures:
        layers = list_layers(body, FAMILIES[body.config.model_type])
        totals = torch.stack([total_importance(layer, importance) for layer in layers])
        keep_layers(body, most_important(totals, ratio).tolist())
    if "heads" in pruning.structures:
        names, width = FAMILIES[body.config.model_type], head_width(body)
        maps = [linear_maps(layer, names) for layer in list_layers(body, names)]
        importances = [_importance_of_heads(layer, width, importance) for layer in maps]
        for layer, kept_N in zip(maps, _select(importances, ratio, pruning), strict=True):
            rows = (kept_N[:, None] * width + torch.arange(width)).flatten()
            for writer in (layer.query, layer.key, layer.value):
                keep_outputs(writer, rows)
            keep_inputs(layer.out, rows)
    if "units" in pruning.structures:
        groups = list_units(body)
        importances = [_importance_of_units(body, group, importance) for group in groups]
        for group, kept_H in zip(groups, _select(importances, ratio, pruning), strict=True):
            _keep_units(body, group, kept_H)
    return _reshaped(network, config)


def take_layers(
    network: PretrainedNetwork, blueprint: Blueprint, layers: int | Sequence[int]
) -> tuple[nn.Module, Blueprint]:
    """A network with the weights of some layers of `network`, and of everything around them, and its blueprint.

    A number of layers are taken at equal distances, with the first and the last one. `network` does not change.

    Source: Sanh et al. 2019, "DistilBERT, a distilled version of BERT", section 2 (a student from every other layer).
    """
    assert isinstance(blueprint.config, Pretrained)
    shape = measure_shape(network.body)
    positions = choose_layers(layers, len(shape.heads))
    config = without_checkpoint(blueprint.config).model_copy(
        update={
            "shape": shape.model_copy(
                update={
                    "heads": tuple(shape.heads[position] for position in positions),
                    "units": tuple(shape.units[position] for position in positions),
                }
            )
        }
    )
    smaller = blueprint.model_copy(update={"config": config})
    prefix = f"body.{FAMILIES[network.body.config.model_type].layers}."
    sources = {f"{prefix}{number}.": f"{prefix}{position}." for number, position in enumerate(positions)}
    student, weights = build_network(smaller), network.state_dict()
    student.load_state_dict({name: weights[_source_name(name, sources)] for name in student.state_dict()})
    return student.eval(), smaller


def choose_layers(layers: int | Sequence[int], num_layers: int) -> list[int]:
    """The positions of the layers to take from `num_layers`, in order."""
    if not isinstance(layers, int):
        return sorted(layers)
    if layers == 1:
        return [num_layers - 1]
    return [round(number * (num_layers - 1) / (layers - 1)) for number in range(layers)]


def _source_name(name: str, sources: dict[str, str]) -> str:
    """The name in the larger network of a weight of the smaller one."""
    for prefix, source in sources.items():
        if name.startswith(prefix):
            return source + name.removeprefix(prefix)
    return name


def _importance_of_heads(layer: LinearMaps, width: int, importance: ImportanceFunction) -> torch.Tensor:
    """By the weights of queries, keys and values, and those that read the head."""
    importance_N = importance(layer.out.weight).unflatten(1, (-1, width)).sum((0, 2))
    for projection in (layer.query, layer.key, layer.value):
        importance_N = importance_N + importance(projection.weight).unflatten(0, (-1, width)).sum((1, 2))
        if projection.bias is not None:
            importance_N = importance_N + importance(projection.bias).unflatten(0, (-1, width)).sum(1)
    return importance_N


def _importance_of_units(body: PreTrainedModel, group: UnitNames, importance: ImportanceFunction) -> torch.Tensor:
    """By incoming and outgoing weights, and those of the normalisation."""
    writer, reader = get_map(body, group.writer), get_map(body, group.reader)
    read_dims = [dim for dim in range(reader.weight.dim()) if dim != 1]
    importance_H = importance(writer.weight).flatten(1).sum(1) + importance(reader.weight).sum(read_dims)
    norm = () if group.norm is None else get_norm(body, group.norm).parameters()
    for weight_H in (writer.bias, *norm):
        if weight_H is not None:
            importance_H = importance_H + importance(weight_H)
    return importance_H


def _select(importances: list[torch.Tensor], ratio: float, pruning: Pruning) -> list[torch.Tensor]:
    """For each layer the positions that stay, in order; at least one."""
    if pruning.scope == "layer":
        return [most_important(importance, ratio) for importance in importances]
    # The most important tenth of a layer always stays, so it counts as more important than all others.
    guarded = []
    for importance in importances:
        num_kept = max(round(len(importance) * _MIN_SHARE), 1)
        guarded.append(importance.index_fill(0, importance.topk(num_kept).indices, torch.inf))
    kept = most_important(torch.cat(guarded), ratio)
    starts = torch.tensor([0, *(len(importance) for importance in importances)]).cumsum(0).tolist()
    return [kept[(kept >= start) & (kept < stop)] - start for start, stop in itertools.pairwise(starts)]


def _keep_units(body: PreTrainedModel, group: UnitNames, kept_H: torch.Tensor) -> None:
    keep_outputs(get_map(body, group.writer), kept_H)
    if group.norm is not None:
        keep_channels(get_norm(body, group.norm), kept_H)
    keep_inputs(get_map(body, group.reader), kept_H)


def _reshaped(network: PretrainedNetwork, config: Pretrained) -> Pretrained:
    return without_checkpoint(config).model_copy(update={"shape": measure_shape(network.body)})
