"""The embedding of a trimmed vocabulary: frequent tokens have a vector of their own, others an approximation.

Shapes: B rows, T steps, W width, V tokens of the tokenizer, K tokens with a vector of their own, P parts of a vector,
D width of a part, C codes.
"""

from __future__ import annotations

import torch
from torch import nn

NUM_CODES = 256  # of a part, so that a code is one byte
_PART_WIDTH = 16


class TrimmedEmbedding(nn.Module):
    """Token ids int64 (B, T) of the whole vocabulary -> h_BTW float32. The tokenizer does not change.

    A token without a vector of its own has that of a similar token, plus a difference in one byte per part of the
    vector. Code 0 stands for no difference.
    """

    rows: torch.Tensor  # int32 (V,): the position of each token's vector, or of the similar token's
    tokens: torch.Tensor  # int32 (K,): the token that each vector belongs to
    codes: torch.Tensor  # uint8 (V, P)
    codebook: torch.Tensor  # float32 (P * C, D)
    first_codes: torch.Tensor  # int64 (P,): where each part begins in the codebook

    def __init__(self, vocabulary_size: int, num_tokens: int, width: int) -> None:
        super().__init__()
        num_parts = width // part_width(width)
        self.entries = nn.Embedding(num_tokens, width)
        self.register_buffer("rows", torch.zeros(vocabulary_size, dtype=torch.int32))
        self.register_buffer("tokens", torch.zeros(num_tokens, dtype=torch.int32))
        self.register_buffer("codes", torch.zeros(vocabulary_size, num_parts, dtype=torch.uint8))
        self.register_buffer("codebook", torch.zeros(num_parts * NUM_CODES, part_width(width)))
        self.register_buffer("first_codes", torch.arange(num_parts) * NUM_CODES, persistent=False)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        codes_BTP = self.codes[ids_BT].long() + self.first_codes
        return self.entries(self.rows[ids_BT]) + self.codebook[codes_BTP].flatten(2)


def part_width(width: int) -> int:
    """D, at most 16: vectors of `width` have parts of equal widths."""
    return next(size for size in range(min(_PART_WIDTH, width), 0, -1) if width % size == 0)
