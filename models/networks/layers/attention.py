"""The blocks of Transformers: attention and a feed-forward layer.

Every linear map stands alone, so that tensor parallelism can cut `query`, `key`, `value` and `up` by their outputs and
`out` and `down` by their inputs.

Source: Vaswani et al. 2017, "Attention Is All You Need"; Xiong et al. 2020, "On Layer Normalization in the Transformer
Architecture" (normalisation first); Hendrycks & Gimpel 2016, "Gaussian Error Linear Units".

Shapes: B rows, T steps, P steps in all, past ones too, W width, N heads, D width of a head, I width of all heads, H
hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.models.networks.config import Gpt, Transformer


class KeyValueCache:
    """Keys and values that one layer has reckoned for earlier steps, so that they need not be reckoned again."""

    def __init__(self) -> None:
        self._key_value: tuple[torch.Tensor, torch.Tensor] | None = None

    def extend(self, key_BTI: torch.Tensor, value_BTI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values (B, P, I), the given ones last; they are remembered."""
        if self._key_value is not None:
            key_BTI = torch.cat([self._key_value[0], key_BTI], dim=1)
            value_BTI = torch.cat([self._key_value[1], value_BTI], dim=1)
        self._key_value = key_BTI, value_BTI
        return self._key_value

    def __len__(self) -> int:
        return 0 if self._key_value is None else self._key_value[0].shape[1]


def attend(
    q_BTI: torch.Tensor,
    k_BPI: torch.Tensor,
    v_BPI: torch.Tensor,
    head_width: int,
    there_BP: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """a_BTI: for each step that asks, the mean of the values, weighted by how its query fits each key, head by head.

    Steps that are not there have no weight; each row must have one that is. In an ONNX file it is one operator of ONNX
    Runtime's own: as what PyTorch takes it apart into, it is thirty, each of which takes as long as a small product.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (q_BTI, k_BPI, v_BPI, None, None if there_BP is None else there_BP.to(torch.int32)),
            {
                "num_heads": q_BTI.shape[-1] // head_width,
                "unidirectional": int(is_causal),
                "mask_filter_value": torch.finfo(torch.float32).min,
            },
            dtype=q_BTI.dtype,
            shape=q_BTI.shape,
            version=1,
        )
    mask = None if there_BP is None else there_BP[:, None, None, :]
    if is_causal and q_BTI.shape[1] != k_BPI.shape[1]:
        # The built-in mask begins at the first step, whichever step is the first that asks.
        num_new, num_all = q_BTI.shape[1], k_BPI.shape[1]
        is_causal, mask = False, q_BTI.new_ones(num_new, num_all, dtype=torch.bool).tril(num_all - num_new)
    # The number of heads is left open: in tensor parallelism each process has some of them.
    q_BNTD, k_BNPD, v_BNPD = (x.unflatten(-1, (-1, head_width)).transpose(1, 2) for x in (q_BTI, k_BPI, v_BPI))
    a_BNTD = F.scaled_dot_product_attention(
        q_BNTD, k_BNPD, v_BNPD, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
    )
    return a_BNTD.transpose(1, 2).flatten(2)


class Heads(NamedTuple):
    """How many there are, and how wide each is."""

    num: int
    width: int


def attention_heads(config: Transformer | Gpt) -> Heads:
    return Heads(config.num_heads, config.head_width or config.width // config.num_heads)


class Attention(nn.Module):
    """Each step looks at all steps that are there; if it is causal, at no later one."""

    def __init__(self, width: int, heads: Heads, dropout: float, *, is_causal: bool = False) -> None:
        super().__init__()
        inside = heads.num * heads.width
        self.query, self.key, self.value = (nn.Linear(width, inside) for _ in range(3))
        self.out = nn.Linear(inside, width)
        self._head_width, self._dropout, self._is_causal = heads.width, dropout, is_causal

    def forward(
        self, x_BTW: torch.Tensor, there_BT: torch.Tensor | None = None, past: KeyValueCache | None = None
    ) -> torch.Tensor:
        q_BTI, k_BPI, v_BPI = self.query(x_BTW), self.key(x_BTW), self.value(x_BTW)
        if past is not None:
            k_BPI, v_BPI = past.extend(k_BPI, v_BPI)
        dropout = self._dropout if self.training else 0.0
        a_BTI = attend(q_BTI, k_BPI, v_BPI, self._head_width, there_BT, is_causal=self._is_causal, dropout=dropout)
        return self.out(a_BTI)


class TransformerBlock(nn.Module):
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
        self, x_BTW: torch.Tensor, there_BT: torch.Tensor | None = None, past: KeyValueCache | None = None
    ) -> torch.Tensor:
        x_BTW = x_BTW + self.dropout(self.attention(self.norm_attention(x_BTW), there_BT, past))
        hidden_BTH = F.gelu(self.up(self.norm_feed_forward(x_BTW)))
        return x_BTW + self.dropout(self.down(hidden_BTH))


class PositionEmbedding(nn.Module):
    """x_BTW with a learnt vector added to each step, by its place."""

    def __init__(self, max_length: int, width: int) -> None:
        super().__init__()
        self.places = nn.Embedding(max_length, width)

    def forward(self, x_BTW: torch.Tensor, first: int = 0) -> torch.Tensor:
        """`first` is the place of the first step. Raises IndexError where there are too few places."""
        behind = first + x_BTW.shape[1]
        if behind > self.places.num_embeddings:
            raise IndexError(f"a row of {behind} steps, where there are {self.places.num_embeddings} places")
        if not self.training:
            return x_BTW + self.places.weight[first:behind]
        at_T = torch.arange(first, behind, device=x_BTW.device)
        # A place for each row, not one for all: private training needs the gradient of each row.
        return x_BTW + self.places(at_T.expand(x_BTW.shape[0], -1))


def init_weights(module: nn.Module) -> None:
    """Small normal weights, as in BERT and GPT; a padding token stays 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
