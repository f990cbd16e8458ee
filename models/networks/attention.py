"""The blocks of Transformers: attention and a feed-forward layer.

Every linear map stands alone, so that tensor parallelism can cut `query`, `key`, `value` and `up` by their outputs and
`out` and `down` by their inputs.

Source: Vaswani et al. 2017, "Attention Is All You Need"; Xiong et al. 2020, "On Layer Normalization in the Transformer
Architecture" (normalisation first); Hendrycks & Gimpel 2016, "Gaussian Error Linear Units".

Shapes: B rows, T steps, P steps in all, past ones too, W width, N heads, D width of a head, H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.networks.config import Gpt, Transformer


class Past:
    """Keys and values that one layer has reckoned for earlier steps, so that they need not be reckoned again."""

    def __init__(self) -> None:
        self._key_value: tuple[torch.Tensor, torch.Tensor] | None = None

    def extended(self, key_BNTD: torch.Tensor, value_BNTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values (B, N, P, D), the given ones last; they are remembered."""
        if self._key_value is not None:
            key_BNTD = torch.cat([self._key_value[0], key_BNTD], dim=2)
            value_BNTD = torch.cat([self._key_value[1], value_BNTD], dim=2)
        self._key_value = key_BNTD, value_BNTD
        return self._key_value

    def __len__(self) -> int:
        return 0 if self._key_value is None else self._key_value[0].shape[2]


class Heads(NamedTuple):
    """How many there are, and how wide each is."""

    num: int
    width: int


def heads_of(config: Transformer | Gpt) -> Heads:
    return Heads(config.num_heads, config.head_width or config.width // config.num_heads)


class Attention(nn.Module):
    """Each step looks at all steps that the mask shows; if it is causal, at no later one."""

    def __init__(self, width: int, heads: Heads, dropout: float, *, is_causal: bool = False) -> None:
        super().__init__()
        inside = heads.num * heads.width
        self.query, self.key, self.value = (nn.Linear(width, inside) for _ in range(3))
        self.out = nn.Linear(inside, width)
        self._head_width, self._dropout, self._is_causal = heads.width, dropout, is_causal

    def forward(
        self, x_BTW: torch.Tensor, mask_B11T: torch.Tensor | None = None, past: Past | None = None
    ) -> torch.Tensor:
        # The number of heads is left open: in tensor parallelism each process has some of them.
        q_BNTD, k_BNPD, v_BNPD = (
            projection(x_BTW).unflatten(-1, (-1, self._head_width)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        is_causal, mask = self._is_causal, mask_B11T
        if past is not None:
            k_BNPD, v_BNPD = past.extended(k_BNPD, v_BNPD)
            num_new, num_all = q_BNTD.shape[2], k_BNPD.shape[2]
            # The built-in mask begins at the first step, whichever step is the first new one.
            is_causal, mask = False, x_BTW.new_ones(num_new, num_all, dtype=torch.bool).tril(num_all - num_new)
        dropout = self._dropout if self.training else 0.0
        a_BNTD = F.scaled_dot_product_attention(
            q_BNTD, k_BNPD, v_BNPD, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
        return self.out(a_BNTD.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a normalisation and added to what came in."""

    def __init__(self, width: int, heads: Heads, hidden: int, dropout: float, *, is_causal: bool = False) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, is_causal=is_causal)
        self.norm_feed_forward = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTW: torch.Tensor, mask_B11T: torch.Tensor | None = None, past: Past | None = None
    ) -> torch.Tensor:
        x_BTW = x_BTW + self.dropout(self.attention(self.norm_attention(x_BTW), mask_B11T, past))
        hidden_BTH = F.gelu(self.up(self.norm_feed_forward(x_BTW)))
        return x_BTW + self.dropout(self.down(hidden_BTH))


class Positions(nn.Module):
    """x_BTW with a learnt vector added to each step, by its place."""

    def __init__(self, max_length: int, width: int) -> None:
        super().__init__()
        self.places = nn.Embedding(max_length, width)

    def forward(self, x_BTW: torch.Tensor, first: int = 0) -> torch.Tensor:
        """`first` is the place of the first step."""
        at_T = torch.arange(first, first + x_BTW.shape[1], device=x_BTW.device)
        # A place for each row, not one for all: private training needs the gradient of each row.
        return x_BTW + self.places(at_T.expand(x_BTW.shape[0], -1))


def initialise(module: nn.Module) -> None:
    """Small normal weights, as in BERT and GPT; a padding token stays 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
