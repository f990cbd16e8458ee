"""The embedding of a trimmed vocabulary: tokens without a row of their own use that of another token.

Shapes: B rows, T steps, W width, V tokens of the tokenizer, K tokens with a row.
"""

from __future__ import annotations

import torch
from torch import nn


class TrimmedEmbedding(nn.Module):
    """Token ids int64 (B, T) of the whole vocabulary -> h_BTW float32. The tokenizer does not change."""

    rows: torch.Tensor  # int32 (V,): the position of each token's embedding
    tokens: torch.Tensor  # int32 (K,): the token that each embedding belongs to

    def __init__(self, vocabulary_size: int, num_tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(vocabulary_size, dtype=torch.int32))
        self.register_buffer("tokens", torch.zeros(num_tokens, dtype=torch.int32))
        self.entries = nn.Embedding(num_tokens, width)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        return self.entries(self.rows[ids_BT])
