"""A Transformer encoder for text and for continuous sequences.

Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding"; Xiong et
al. 2020, "On Layer Normalization in the Transformer Architecture" (normalisation first).

Shapes: B rows, T steps, W width, K outputs.
"""

from __future__ import annotations

import torch
from torch import nn

from data_contracts.layouts import Layout
from models.networks.attention import Block, Positions, heads_of, initialise
from models.networks.config import Transformer
from models.networks.masks import Steps, length_of, pooled, without_common_padding


class Encoder(nn.Module):
    """x float32 as the layout has it -> float32 (B, K). What padding holds has no part in the answer.

    A row may have as many steps as there are positions, and fewer.
    """

    def __init__(self, config: Transformer, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        self.max_length = config.max_length or length_of(layout)
        self.steps = Steps(layout, config.width)
        self.positions = Positions(self.max_length, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        hidden = max(round(config.width * config.feed_forward), 1)
        self.blocks = nn.ModuleList(
            Block(config.width, heads_of(config), hidden, config.dropout) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, num_outputs)
        self._pooling = config.pooling
        self._has_padding = layout.kind == "tokens" or layout.is_padded
        self.apply(initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self._has_padding:
            x = without_common_padding(x)
        h_BTW, mask_B11T = self.begin(x), self.mask(x)
        for block in self.blocks:
            h_BTW = block(h_BTW, mask_B11T)
        return self.end(h_BTW, x)

    def begin(self, x: torch.Tensor) -> torch.Tensor:
        """h_BTW, which the first block takes."""
        x_BTW, _ = self.steps(x)
        return self.dropout(self.norm_in(self.positions(x_BTW)))

    def mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """mask_B11T, with which every block is called. Without one, attention has quicker kernels."""
        return self.steps.there(x)[:, None, None, :] if self._has_padding else None

    def end(self, h_BTW: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """float32 (B, K), from what the last block gives."""
        return self.head(self.dropout(pooled(self.norm(h_BTW), self.steps.there(x), self._pooling)))


def build(config: Transformer, layout: Layout, num_outputs: int) -> Encoder:
    return Encoder(config, layout, num_outputs)
