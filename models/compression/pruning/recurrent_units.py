"""Hidden units that leave a recurrent network.

Shapes: H hidden units, K outputs of what reads them.
"""

from __future__ import annotations

import torch
from torch import nn

from bloomery.models.compression.pruning.importance import ImportanceFunction
from bloomery.models.networks.architectures.rnn import RecurrentNetwork
from bloomery.models.networks.config import Rnn


def prune_recurrent_units(network: RecurrentNetwork, config: Rnn, share: float, measure: ImportanceFunction) -> Rnn:
    """Afterwards `network` has lost the `share` of hidden units that matter least, at most all but one.

    Each direction of each layer loses as many, each its own; a unit goes from all gates and from all that reads it.

    Returns:
        A config that builds a network of this shape.

    Source: Wen et al. 2018, "Learning Intrinsic Sparse Structures within Long Short-Term Memory", section 3.2 (all
    weights of a unit go together).
    """
    num_kept = max(config.hidden - round(config.hidden * share), 1)
    layers = [list(directions.children()) for directions in network.layers.children()]
    kept = [
        _most_important(layers, number, network.head, config.hidden, num_kept, measure) for number in range(len(layers))
    ]
    for number, cells in enumerate(layers):
        for cell, kept_H in zip(cells, kept[number], strict=True):
            _keep_outputs(cell, kept_H)
        columns = torch.cat([place * config.hidden + kept_H for place, kept_H in enumerate(kept[number])])
        for reader in _readers(layers, number, network.head):
            _keep_inputs(reader, columns)
    return config.model_copy(update={"hidden": num_kept})


def _readers(layers: list[list[nn.Module]], number: int, head: nn.Module) -> list[nn.Module]:
    return layers[number + 1] if number + 1 < len(layers) else [head]


def _most_important(
    layers: list[list[nn.Module]], number: int, head: nn.Module, hidden: int, num: int, measure: ImportanceFunction
) -> list[torch.Tensor]:
    """Of each direction the `num` units, in order, that matter most: in all gates, in the next step and behind."""
    read = [dict(reader.named_parameters()) for reader in _readers(layers, number, head)]
    inputs = [weights.get("weight_ih_l0", weights.get("weight")) for weights in read]
    outgoing = torch.cat([measure(weight) for weight in inputs if weight is not None]).split(hidden, dim=1)
    kept = []
    for cell, outgoing_KH in zip(layers[number], outgoing, strict=True):
        matter_H = outgoing_KH.sum(0)
        for name, weight in cell.named_parameters():
            measured = measure(weight)
            matter_H = matter_H + measured.reshape(-1, hidden, measured[0].numel()).sum((0, 2))
            if "weight_hh" in name:
                matter_H = matter_H + measured.sum(0)
        kept.append(matter_H.topk(num).indices.sort().values)
    return kept


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
