"""Recurrent networks over sequences: Elman's, the LSTM and the GRU, in one or both directions.

Source: Elman 1990, "Finding Structure in Time"; Hochreiter & Schmidhuber 1997, "Long Short-Term Memory"; Cho et al.
2014, "Learning Phrase Representations using RNN Encoder-Decoder"; Lai et al. 2018, "Modeling Long- and Short-Term
Temporal Patterns with Deep Neural Networks", section 3.5 (the highway).

Shapes: B rows, T steps, F values of a step, H hidden units, D directions, K outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from data_contracts.layouts import Layout
from models.networks.config import Rnn
from models.networks.masks import Steps, length_of, pooled, turned

_CELLS = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """x float32 as the layout has it -> float32 (B, K). What padding holds has no part in the answer.

    Each direction is a stack of layers of its own that reads the steps in its order, so padding is always behind and
    the steps before it do not feel it.
    """

    def __init__(self, config: Rnn, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        # It could read more, but nothing shows that it answers well on rows longer than those it has learnt from.
        self.max_length = length_of(layout)
        self.steps = Steps(layout, config.embedding if layout.kind == "tokens" else None)
        num_directions = 2 if config.bidirectional else 1
        widths = [self.steps.width] + [config.hidden * num_directions] * (config.num_layers - 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(_CELLS[config.cell](width, config.hidden, batch_first=True) for _ in range(num_directions))
            for width in widths
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden * num_directions, num_outputs)
        self.highway = nn.Linear(config.highway * self.steps.width, num_outputs) if config.highway else None
        self._pooling, self._num_highway = config.pooling, config.highway
        self._is_bidirectional = config.bidirectional
        if self.highway is not None:
            nn.init.zeros_(self.highway.weight)
        for name, weight in self.layers.named_parameters():
            _initialise(name, weight, config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_BTF, there_BT = self.steps(x)
        h_BTH = x_BTF
        for number, directions in enumerate(self.layers):
            h_BTH = _through(list(directions.children()), self.dropout(h_BTH) if number else h_BTH, there_BT)
        if self._pooling == "last" and self._is_bidirectional:
            # The backward direction has read the whole sequence at its first step, not at its last.
            forward_BH, backward_BH = h_BTH.chunk(2, dim=2)
            pooled_BH = torch.cat([pooled(forward_BH, there_BT, "last"), backward_BH[:, 0]], dim=1)
        else:
            pooled_BH = pooled(h_BTH, there_BT, self._pooling)
        answer_BK = self.head(self.dropout(pooled_BH))
        if self.highway is None:
            return answer_BK
        return answer_BK + self.highway(_last_steps(x_BTF, there_BT, self._num_highway))


def _through(directions: Sequence[nn.Module], x_BTF: torch.Tensor, there_BT: torch.Tensor) -> torch.Tensor:
    h_BTH = directions[0](x_BTF)[0]
    if len(directions) == 1:
        return h_BTH
    backward_BTH = turned(directions[1](turned(x_BTF, there_BT))[0], there_BT)
    return torch.cat([h_BTH, backward_BTH], dim=2)


def _last_steps(x_BTF: torch.Tensor, there_BT: torch.Tensor, num: int) -> torch.Tensor:
    """The last `num` steps that are there, the last one first, side by side (B, num * F); 0 before the first."""
    at_B1 = there_BT.sum(1, keepdim=True) - 1
    at_Bn = at_B1 - torch.arange(num, device=x_BTF.device).unsqueeze(0)
    steps_BnF = x_BTF.gather(1, at_Bn.clamp(min=0).unsqueeze(-1).expand(-1, -1, x_BTF.shape[2]))
    return (steps_BnF * (at_Bn >= 0).unsqueeze(-1)).flatten(1)


def _initialise(name: str, weight: nn.Parameter, config: Rnn) -> None:
    """Orthogonal recurrent weights and an open forget gate, which let long sequences be learnt from the start.

    Source: Saxe et al. 2014 (orthogonal); Jozefowicz et al. 2015, section 2.1 (forget gate).
    """
    if "weight_hh" in name:
        for gate in weight.data.split(config.hidden):
            nn.init.orthogonal_(gate)
    elif "weight_ih" in name:
        for gate in weight.data.split(config.hidden):
            nn.init.xavier_uniform_(gate)
    else:
        nn.init.zeros_(weight)
        if config.cell == "lstm" and "bias_ih" in name:
            weight.data[config.hidden : 2 * config.hidden] = 1.0


def prune(network: Recurrent, config: Rnn, share: float) -> tuple[Recurrent, Rnn]:
    """A copy of `network` that has lost the `share` of hidden units of least weight, at most all but one.

    Each direction of each layer loses as many, each its own; a unit goes from all gates and from all that reads it.
    `network` itself is left as it is; the config returned builds a network of the copy's shape.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets" (importance by norm); Wen et al. 2018, "Learning
    Intrinsic Sparse Structures within Long Short-Term Memory" (all weights of a unit go together).
    """
    smaller = copy.deepcopy(network).eval()
    num_kept = max(config.hidden - round(config.hidden * share), 1)
    layers = [list(directions.children()) for directions in smaller.layers.children()]
    for number, cells in enumerate(layers):
        readers = layers[number + 1] if number + 1 < len(layers) else [smaller.head]
        read = [dict(reader.named_parameters()) for reader in readers]
        inputs = [weights.get("weight_ih_l0", weights.get("weight")) for weights in read]
        outgoing = torch.cat([weight.data for weight in inputs if weight is not None]).split(config.hidden, dim=1)
        kept = [_heaviest(cell, outgoing_KH, num_kept) for cell, outgoing_KH in zip(cells, outgoing, strict=True)]
        for cell, kept_H in zip(cells, kept, strict=True):
            _keep_outputs(cell, kept_H)
        columns = torch.cat([place * config.hidden + kept_H for place, kept_H in enumerate(kept)])
        for reader in readers:
            _keep_inputs(reader, columns)
    return smaller, config.model_copy(update={"hidden": num_kept})


def _heaviest(cell: nn.Module, outgoing_KH: torch.Tensor, num: int) -> torch.Tensor:
    """The `num` units, in order, whose weights in all gates, in the next step and behind the cell are largest."""
    hidden = outgoing_KH.shape[1]
    weight_H = outgoing_KH.square().sum(0)
    for name, weight in cell.named_parameters():
        weight_H = weight_H + weight.data.reshape(-1, hidden, weight[0].numel()).square().sum((0, 2))
        if "weight_hh" in name:
            weight_H = weight_H + weight.data.square().sum(0)
    return weight_H.topk(num).indices.sort().values


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


def build(config: Rnn, layout: Layout, num_outputs: int) -> Recurrent:
    return Recurrent(config, layout, num_outputs)
