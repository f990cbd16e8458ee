"""Transformer blocks: attention and a feed-forward layer.

Every linear map is a separate module, so that tensor parallelism can shard `query`, `key`, `value` and `up` by output
and `out` and `down` by input.

Source: Vaswani et al. 2017, "Attention Is All You Need"; Xiong et al. 2020, "On Layer Normalization in the Transformer
Architecture" (pre-norm); Hendrycks & Gimpel 2016, "Gaussian Error Linear Units".

Shapes: B rows, T steps, P steps including cached ones, W width, N heads, D width of a head, I width of all heads,
H hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.models.networks.config import AttentionConfig


class KeyValueCache:
    """The keys and values of earlier steps in one layer, for generation step by step."""

    def __init__(self) -> None:
        self._key_value: tuple[torch.Tensor, torch.Tensor] | None = None

    def extend(self, key_BTI: torch.Tensor, value_BTI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values, and returns all of them, (B, P, I)."""
        if self._key_value is not None:
            key_BTI = torch.cat([self._key_value[0], key_BTI], dim=1)
            value_BTI = torch.cat([self._key_value[1], value_BTI], dim=1)
        self._key_value = key_BTI, value_BTI
        return self._key_value

    def __len__(self) -> int:
        return 0 if self._key_value is None else self._key_value[0].shape[1]


class QueryKeyValue(NamedTuple):
    """The queries, keys and values of all heads."""

    query: torch.Tensor  # (B, T, I)
    key: torch.Tensor  # (B, P, I)
    value: torch.Tensor  # (B, P, I)


def attend(
    projections: QueryKeyValue,
    head_width: int,
    mask_BP: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention: a_BTI.

    Padded steps (False in `mask_BP`) have no weight; each row must have a real one. ONNX export uses one operator of
    ONNX Runtime, because PyTorch's decomposition has thirty, each as slow as a small matrix product.
    """
    q_BTI, k_BPI, v_BPI = projections
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (q_BTI, k_BPI, v_BPI, None, None if mask_BP is None else mask_BP.to(torch.int32)),
            {
                "num_heads": q_BTI.shape[-1] // head_width,
                "unidirectional": int(is_causal),
                "mask_filter_value": torch.finfo(torch.float32).min,
            },
            dtype=q_BTI.dtype,
            shape=q_BTI.shape,
            version=1,
        )
    mask = None if mask_BP is None else mask_BP[:, None, None, :]
    if is_causal and q_BTI.shape[1] != k_BPI.shape[1]:
        # The built-in causal mask assumes that the first query belongs to the first key.
        num_new, num_all = q_BTI.shape[1], k_BPI.shape[1]
        is_causal, mask = False, q_BTI.new_ones(num_new, num_all, dtype=torch.bool).tril(num_all - num_new)
    # The number of heads is inferred: with tensor parallelism each process has a part of them.
    q_BNTD, k_BNPD, v_BNPD = (x.unflatten(-1, (-1, head_width)).transpose(1, 2) for x in (q_BTI, k_BPI, v_BPI))
    a_BNTD = F.scaled_dot_product_attention(
        q_BNTD, k_BNPD, v_BNPD, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
    )
    return a_BNTD.transpose(1, 2).flatten(2)


class Heads(NamedTuple):
    """The number of attention heads, and the width of each."""

    num: int
    width: int


def attention_heads(config: AttentionConfig) -> Heads:
    return Heads(config.num_heads, config.head_width or config.width // config.num_heads)


class Attention(nn.Module):
    """Multi-head self-attention over real steps; causal attention does not see later steps."""

    def __init__(self, width: int, heads: Heads, dropout: float, *, is_causal: bool = False) -> None:
        super().__init__()
        heads_width = heads.num * heads.width
        self.query, self.key, self.value = (nn.Linear(width, heads_width) for _ in range(3))
        self.out = nn.Linear(heads_width, width)
        self._head_width, self._dropout, self._is_causal = heads.width, dropout, is_causal

    def forward(
        self, x_BTW: torch.Tensor, mask_BT: torch.Tensor | None = None, cache: KeyValueCache | None = None
    ) -> torch.Tensor:
        q_BTI, k_BPI, v_BPI = self.query(x_BTW), self.key(x_BTW), self.value(x_BTW)
        if cache is not None:
            k_BPI, v_BPI = cache.extend(k_BPI, v_BPI)
        dropout = self._dropout if self.training else 0.0
        projections = QueryKeyValue(q_BTI, k_BPI, v_BPI)
        a_BTI = attend(projections, self._head_width, mask_BT, is_causal=self._is_causal, dropout=dropout)
        return self.out(a_BTI)


class TransformerBlock(nn.Module):
    """A pre-norm residual block of attention and a feed-forward layer."""

    def __init__(self, width: int, heads: Heads, hidden: int, dropout: float, *, is_causal: bool = False) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, is_causal=is_causal)
        self.norm_feed_forward = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTW: torch.Tensor, mask_BT: torch.Tensor | None = None, cache: KeyValueCache | None = None
    ) -> torch.Tensor:
        x_BTW = x_BTW + self.dropout(self.attention(self.norm_attention(x_BTW), mask_BT, cache))
        hidden_BTH = F.gelu(self.up(self.norm_feed_forward(x_BTW)))
        return x_BTW + self.dropout(self.down(hidden_BTH))


class PositionEmbedding(nn.Module):
    """Adds a learnt position embedding to x_BTW."""

    def __init__(self, max_length: int, width: int) -> None:
        super().__init__()
        self.places = nn.Embedding(max_length, width)

    def forward(self, x_BTW: torch.Tensor, first: int = 0) -> torch.Tensor:
        """`first` is the position of the first step. Raises IndexError if there are too few positions."""
        end = first + x_BTW.shape[1]
        if end > self.places.num_embeddings:
            raise IndexError(f"a row has {end} steps, but the network has only {self.places.num_embeddings} positions")
        if not self.training:
            return x_BTW + self.places.weight[first:end]
        positions_T = torch.arange(first, end, device=x_BTW.device)
        # One lookup per row instead of one for all: DP-SGD needs per-row gradients.
        return x_BTW + self.places(positions_T.expand(x_BTW.shape[0], -1))


def init_weights(module: nn.Module) -> None:
    """Initialises with small normal weights, as BERT and GPT do; the padding token stays 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
