"""The FT-Transformer for tables: each column is one token.

Source: Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data", section 3.3 and appendix E.1 (no
normalisation before the first attention, ReGLU, output from the token [CLS]).

Shapes: B rows, F values of a row, N numbers, C categories, T tokens, Q query tokens, W width, K outputs.
"""

from __future__ import annotations

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architecture import PrunableLayer
from bloomery.models.networks.config import FtTransformer
from bloomery.models.networks.layers.attention import QueryKeyValue, attend
from bloomery.models.networks.layers.tabular_embedding import TabularInput, require_flat


class TableTransformer(nn.Module):
    """x_BF float32 -> float32 (B, K)."""

    def __init__(self, config: FtTransformer, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        require_flat(layout, "ft_transformer")
        self.tokens = ColumnTokens(layout, config.width)
        self.blocks = nn.ModuleList(Block(config, is_first=number == 0) for number in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, num_outputs)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        x_BTW = self.tokens(x_BF)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            # Only the first token of the last block is used.
            x_BTW = block(x_BTW, num_queries=1 if number == last else None)
        return self.head(torch.relu(self.norm(x_BTW[:, 0])))


class ColumnTokens(nn.Module):
    """x_BF float32 -> x_BTW: the tokens [CLS], numbers, categories."""

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.columns = TabularInput(layout)
        counts = self.columns.counts
        self.first = nn.Parameter(_uniform(1, width))
        self.slope = nn.Parameter(_uniform(self.columns.num_numbers, width)) if self.columns.num_numbers else None
        self.offset = nn.Parameter(_uniform(self.columns.num_numbers, width)) if self.columns.num_numbers else None
        self.categories = nn.Embedding(sum(counts), width, _weight=_uniform(sum(counts), width)) if counts else None
        starts = torch.tensor([sum(counts[:position]) for position in range(len(counts))], dtype=torch.int64)
        self.register_buffer("_starts", starts, persistent=False)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        numbers_BN, codes_BC = self.columns(x_BF)
        tokens = [self.first.expand(x_BF.shape[0], 1, -1)]
        if self.slope is not None and self.offset is not None:
            tokens.append(numbers_BN.unsqueeze(-1) * self.slope + self.offset)
        if self.categories is not None:
            tokens.append(self.categories(codes_BC + self._starts))
        return torch.cat(tokens, dim=1)


def _uniform(num: int, width: int) -> torch.Tensor:
    return (torch.rand(num, width) * 2 - 1) * width**-0.5


class Block(nn.Module):
    """A pre-norm residual block of attention and a gated feed-forward layer."""

    def __init__(self, config: FtTransformer, *, is_first: bool) -> None:
        super().__init__()
        width, hidden = config.width, max(round(config.width * config.feed_forward), 1)
        self.norm_attention = nn.Identity() if is_first else nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_feed_forward = nn.LayerNorm(width)
        self.up, self.gate, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)
        self._head_width, self._dropout = width // config.num_heads, config.dropout

    def forward(self, x_BTW: torch.Tensor, num_queries: int | None = None) -> torch.Tensor:
        """Computes x_BQW: the first `num_queries` tokens, or all if None."""
        normed_BTW = self.norm_attention(x_BTW)
        x_BQW = x_BTW[:, :num_queries] + self._attention(normed_BTW[:, :num_queries], normed_BTW)
        normed_BQW = self.norm_feed_forward(x_BQW)
        return x_BQW + self.down(self.dropout(self.up(normed_BQW) * torch.relu(self.gate(normed_BQW))))

    def _attention(self, query_BQW: torch.Tensor, normed_BTW: torch.Tensor) -> torch.Tensor:
        dropout = self._dropout if self.training else 0.0
        projections = QueryKeyValue(self.query(query_BQW), self.key(normed_BTW), self.value(normed_BTW))
        return self.out(attend(projections, self._head_width, dropout=dropout))


def prunable_layers(network: TableTransformer) -> list[PrunableLayer]:
    """The layers with output units that can be pruned: those of the feed-forward layers."""
    return [layer for block in network.blocks for layer in (block.up, block.gate)]  # type: ignore[misc]


def pruned_config(network: TableTransformer, config: FtTransformer) -> FtTransformer:
    """`config` with the widths of `network`, so that a pruned network can be rebuilt."""
    hidden: int = network.blocks[0].up.out_features  # type: ignore[union-attr, assignment]
    return config.model_copy(update={"feed_forward": hidden / config.width})


def build(config: FtTransformer, layout: Layout, num_outputs: int) -> TableTransformer:
    return TableTransformer(config, layout, num_outputs)
