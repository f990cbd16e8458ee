"""Recurrent networks for sequences: Elman, LSTM and GRU cells, uni- or bidirectional.

Source: Elman 1990, "Finding Structure in Time"; Hochreiter & Schmidhuber 1997, "Long Short-Term Memory"; Cho et al.
2014, "Learning Phrase Representations using RNN Encoder-Decoder"; Lai et al. 2018, "Modeling Long- and Short-Term
Temporal Patterns with Deep Neural Networks", section 3.5 (the highway); Zeng et al. 2023, "Are Transformers Effective
for Time Series Forecasting?", and Kim et al. 2022, "Reversible Instance Normalization" (relative steps).

Shapes: B rows, T steps, F values of a step, H hidden units, D directions, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.config import Rnn
from bloomery.models.networks.layers.padding import (
    EACH_STEP,
    StepEmbedding,
    mask_steps,
    pool,
    reverse_steps,
    sequence_length,
)

_CELLS = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RelativeSteps(nn.Module):
    """Reads the first value of each step relative to that of the last step, by the deviation of the row's first values.

    Levels and trends beyond those of the training rows then stay in the range that the network knows. The forecast
    starts from `weight` times the last step plus `bias`; an untrained network repeats the last step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x_BTF: torch.Tensor, mask_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the steps (B, T, F + 1): relative value, then all F values, bounded; start and deviation (B, 1)."""
        first_BT = x_BTF[..., 0]
        last_B1 = _last_steps(x_BTF, mask_BT, 1)[:, :1]
        num_B1 = mask_BT.sum(1, keepdim=True)
        mean_B1 = (first_BT * mask_BT).sum(1, keepdim=True) / num_B1
        variance_B1 = ((first_BT - mean_B1).square() * mask_BT).sum(1, keepdim=True) / num_B1
        deviation_B1 = (variance_B1 + 1e-4).sqrt()  # at least a hundredth of that of all training rows
        relative_BT = (first_BT - last_B1) / deviation_B1 * mask_BT
        bounded_BTF = x_BTF / (1 + x_BTF.square()).sqrt()
        steps_BTF = torch.cat([relative_BT.unsqueeze(-1), bounded_BTF], dim=2)
        return steps_BTF, last_B1 * self.weight + self.bias, deviation_B1


class RecurrentNetwork(nn.Module):
    """x float32 as in the layout -> float32 (B, K). Padding does not affect the output.

    The backward direction reads the real steps in reverse order, so padding is at the end for both directions.
    """

    def __init__(self, config: Rnn, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        # It can process longer rows, but is not tested on rows longer than those of the training split.
        self.max_length = sequence_length(layout)
        self.steps = StepEmbedding(layout, config.embedding if layout.kind == "tokens" else None)
        num_directions = 2 if config.bidirectional else 1
        self.relative = RelativeSteps() if config.relative else None
        widths = [self.steps.width + config.relative] + [config.hidden * num_directions] * (config.num_layers - 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(_CELLS[config.cell](width, config.hidden, batch_first=True) for _ in range(num_directions))
            for width in widths
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden * num_directions, num_outputs)
        self.highway = nn.Linear(config.highway * self.steps.width, num_outputs) if config.highway else None
        self._pooling: str = config.pooling
        self._num_highway = config.highway
        self._is_bidirectional = config.bidirectional
        if self.highway is not None:
            nn.init.zeros_(self.highway.weight)
            if config.relative:
                nn.init.zeros_(self.highway.bias)
        if self.relative is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        for name, weight in self.layers.named_parameters():
            _initialise(name, weight, config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_BTF, mask_BT = self.steps(x)
        if self.relative is None:
            return self._outputs(x_BTF, x_BTF, mask_BT, 1.0)
        steps_BTF, start_B1, deviation_B1 = self.relative(x_BTF, mask_BT)
        highway_BTF = torch.cat([steps_BTF[..., :1], steps_BTF[..., 2:]], dim=2)
        return start_B1 + self._outputs(steps_BTF, highway_BTF, mask_BT, deviation_B1)

    def _outputs(
        self, x_BTF: torch.Tensor, highway_BTF: torch.Tensor, mask_BT: torch.Tensor, highway_scale: torch.Tensor | float
    ) -> torch.Tensor:
        h_BTH = x_BTF
        for number, directions in enumerate(self.layers):
            h_BTH = _run_layer(list(directions.children()), self.dropout(h_BTH) if number else h_BTH, mask_BT)
        if self._pooling == "last" and self._is_bidirectional:
            # The backward direction has read the complete sequence at the first step.
            forward_BH, backward_BH = h_BTH.chunk(2, dim=2)
            pooled_BH = torch.cat([pool(forward_BH, mask_BT, "last"), backward_BH[:, 0]], dim=1)
        else:
            pooled_BH = pool(h_BTH, mask_BT, self._pooling)
        outputs_BK = mask_steps(self.head(self.dropout(pooled_BH)), mask_BT, self._pooling)
        if self.highway is None:
            return outputs_BK
        return outputs_BK + self.highway(_last_steps(highway_BTF, mask_BT, self._num_highway)) * highway_scale

    def predict_each_step(self) -> None:
        """Gives the network outputs for each step, (B, T, K), which are 0 for padding."""
        self._pooling = EACH_STEP


def _run_layer(directions: Sequence[nn.Module], x_BTF: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    h_BTH = directions[0](x_BTF)[0]
    if len(directions) == 1:
        return h_BTH
    backward_BTH = reverse_steps(directions[1](reverse_steps(x_BTF, mask_BT))[0], mask_BT)
    return torch.cat([h_BTH, backward_BTH], dim=2)


def _last_steps(x_BTF: torch.Tensor, mask_BT: torch.Tensor, num: int) -> torch.Tensor:
    """The last `num` real steps, last one first, concatenated (B, num * F); 0 before the first step."""
    at_B1 = mask_BT.sum(1, keepdim=True) - 1
    at_Bn = at_B1 - torch.arange(num, device=x_BTF.device).unsqueeze(0)
    steps_BnF = x_BTF.gather(1, at_Bn.clamp(min=0).unsqueeze(-1).expand(-1, -1, x_BTF.shape[2]))
    return (steps_BnF * (at_Bn >= 0).unsqueeze(-1)).flatten(1)


def _initialise(name: str, weight: nn.Parameter, config: Rnn) -> None:
    """Initialises orthogonal recurrent weights and an open forget gate, which help with long sequences.

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


def build(config: Rnn, layout: Layout, num_outputs: int) -> RecurrentNetwork:
    return RecurrentNetwork(config, layout, num_outputs)
