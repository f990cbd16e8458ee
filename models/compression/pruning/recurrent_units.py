"""Prunes hidden units of recurrent networks.

Shapes: H hidden units, K outputs of the layer behind.
"""

from __future__ import annotations

import torch
from torch import nn

from bloomery.models.compression.pruning.importance import ImportanceFunction
from bloomery.models.networks.architectures.rnn import RecurrentNetwork
from bloomery.models.networks.config import Rnn


def prune_recurrent_units(network: RecurrentNetwork, config: Rnn, ratio: float, importance: ImportanceFunction) -> Rnn:
    """Remove the `ratio` of least important hidden units from `network` in place, at most all but one.

    Each direction of each layer loses the same number of its own units. A unit is removed from all gates and from all
    its readers.

    Returns:
        A config that builds a network of this shape.

    Source: Wen et al. 2018, "Learning Intrinsic Sparse Structures within Long Short-Term Memory", section 3.2 (all
    weights of a unit are removed together).
    """
    num_kept = max(config.hidden - round(config.hidden * ratio), 1)
    layers = [list(directions.children()) for directions in network.layers.children()]
    kept_units = [
        _most_important(layers[number], _readers(layers, number, network.head), config.hidden, num_kept, importance)
        for number in range(len(layers))
    ]
    for number, cells in enumerate(layers):
        for cell, kept_H in zip(cells, kept_units[number], strict=True):
            _keep_outputs(cell, kept_H)
        columns = torch.cat([direction * config.hidden + kept_H for direction, kept_H in enumerate(kept_units[number])])
        for reader in _readers(layers, number, network.head):
            _keep_inputs(reader, columns)
    return config.model_copy(update={"hidden": num_kept})


def _readers(layers: list[list[nn.Module]], number: int, head: nn.Module) -> list[nn.Module]:
    return layers[number + 1] if number + 1 < len(layers) else [head]


def _most_important(
    cells: list[nn.Module], readers: list[nn.Module], hidden: int, num_kept: int, importance: ImportanceFunction
) -> list[torch.Tensor]:
    """For each direction the `num_kept` most important units, in order: over all gates, the next step and readers."""
    reader_weights = [dict(reader.named_parameters()) for reader in readers]
    inputs = [weights.get("weight_ih_l0", weights.get("weight")) for weights in reader_weights]
    outgoing = torch.cat([importance(weight) for weight in inputs if weight is not None]).split(hidden, dim=1)
    kept_units = []
    for cell, outgoing_KH in zip(cells, outgoing, strict=True):
        importance_H = outgoing_KH.sum(0)
        for name, weight in cell.named_parameters():
            of_weight = importance(weight)
            importance_H = importance_H + of_weight.reshape(-1, hidden, of_weight[0].numel()).sum((0, 2))
            if "weight_hh" in name:
                importance_H = importance_H + of_weight.sum(0)
        kept_units.append(importance_H.topk(num_kept).indices.sort().values)
    return kept_units


def _keep_outputs(cell: nn.Module, kept_H: torch.Tensor) -> None:
    assert isinstance(cell, nn.RNNBase)
    for name, weight in list(cell.named_parameters()):
        rows = weight.data.unflatten(0, (-1, cell.hidden_size))[:, kept_H].flatten(0, 1)
        setattr(cell, name, nn.Parameter(rows[:, kept_H] if "weight_hh" in name else rows))
    cell.hidden_size = len(kept_H)


def _keep_inputs(reader: nn.Module, columns: torch.Tensor) -> None:
    if isinstance(reader, nn.RNNBase):
        reader.weight_ih_l0 = nn.Parameter(reader.weight_ih_l0.data[:, columns])  # type: ignore[index]
        reader.input_size = len(columns)
    elif isinstance(reader, nn.Linear):
        reader.weight = nn.Parameter(reader.weight.data[:, columns])
        reader.in_features = len(columns)
