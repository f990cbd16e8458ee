"""A Transformer encoder for text and continuous sequences.

Source: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding"; Xiong et
al. 2020, "On Layer Normalization in the Transformer Architecture" (pre-norm); So et al. 2021, "Primer: Searching for
Efficient Transformers for Language Modeling" (a depthwise convolution over neighbouring steps); Cheng et al. 2016,
"Wide & Deep Learning for Recommender Systems" (a linear map beside the network).

Shapes: B rows, T steps, W width, K outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.config import Transformer
from bloomery.models.networks.layers.attention import PositionEmbedding, TransformerBlock, attention_heads, init_weights
from bloomery.models.networks.layers.padding import (
    EACH_STEP,
    StepEmbedding,
    mask_steps,
    pool,
    require_tokens,
    sequence_length,
    trim_common_padding,
)


class TransformerEncoder(nn.Module):
    """x float32 as in the layout -> float32 (B, K). Padding does not affect the output.

    Rows may have at most `max_length` steps.
    """

    def __init__(self, config: Transformer, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        self.max_length = config.max_length or sequence_length(layout)
        self.steps = StepEmbedding(layout, config.width)
        self.positions = PositionEmbedding(self.max_length, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        hidden = max(round(config.width * config.feed_forward), 1)
        self.neighbours = LocalConvolution(config.width, config.convolution) if config.convolution else None
        self.wide = WideTokens(layout, num_outputs) if config.wide else None
        self.blocks = nn.ModuleList(
            TransformerBlock(config.width, attention_heads(config), hidden, config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, num_outputs)
        self._pooling: str = config.pooling
        self._has_padding = layout.kind == "tokens" or layout.is_padded
        self.apply(init_weights)
        if self.wide is not None:  # so that it has no effect at first
            nn.init.zeros_(self.wide.weights.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self._has_padding:
            x = trim_common_padding(x)
        return self.compute_outputs(self._encode(x), x)

    def states(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The state of each step, h_BTW, and mask_BT, which is True for real steps."""
        return self.norm(self._encode(x)), self.steps.step_mask(x)

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        """The output of the last block, h_BTW."""
        h_BTW, mask_BT = self.embed(x), self.padding_mask(x)
        for block in self.blocks:
            h_BTW = block(h_BTW, mask_BT)
        return h_BTW

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the first block, h_BTW."""
        x_BTW, mask_BT = self.steps(x)
        h_BTW = self.dropout(self.norm_in(self.positions(x_BTW)))
        return h_BTW if self.neighbours is None else self.neighbours(h_BTW, mask_BT)

    def padding_mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """mask_BT for every block; None without padding, for which attention has faster kernels."""
        return self.steps.step_mask(x) if self._has_padding else None

    def compute_outputs(self, h_BTW: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """float32 (B, K), from the output of the last block."""
        mask_BT = self.steps.step_mask(x)
        outputs_BK = self.head(self.dropout(pool(self.norm(h_BTW), mask_BT, self._pooling)))
        outputs_BK = mask_steps(outputs_BK, mask_BT, self._pooling)
        return outputs_BK if self.wide is None else outputs_BK + self.wide(x)

    def predict_each_step(self) -> None:
        """Gives the network outputs for each step, (B, T, K), which are 0 for padding."""
        self._pooling = EACH_STEP


class LocalConvolution(nn.Module):
    """Adds a depthwise convolution over neighbouring steps to h_BTW."""

    def __init__(self, width: int, num_steps: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, num_steps, padding=num_steps // 2, groups=width)

    def forward(self, h_BTW: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        masked_BWT = (h_BTW * mask_BT.unsqueeze(-1)).transpose(
            1, 2
        )  # padding counts as zero, like steps beyond the ends
        return h_BTW + F.gelu(self.convolution(masked_BWT)).transpose(1, 2)


class WideTokens(nn.Module):
    """x (B, T), token ids -> float32 (B, K): the sum of token weights over the square root of their number."""

    def __init__(self, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        num_tokens = require_tokens(layout, "`wide` needs tokens", "leave `wide` out")
        self._last_token = num_tokens - 1
        self.weights = nn.Embedding(num_tokens, num_outputs, padding_idx=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens_BT = x.long().clamp(0, self._last_token)
        num_B1 = (tokens_BT > 0).sum(1, keepdim=True).clamp(min=1)
        return self.weights(tokens_BT).sum(1) / num_B1.sqrt()


def build(config: Transformer, layout: Layout, num_outputs: int) -> TransformerEncoder:
    return TransformerEncoder(config, layout, num_outputs)
