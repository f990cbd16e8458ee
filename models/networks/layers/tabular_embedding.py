"""The input layer of networks for flat rows.

Shapes: B rows, F values of a row, N numbers, C categories.
"""

from __future__ import annotations

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout


class TabularInput(nn.Module):
    """Separates numbers and categories: x_BF float32 -> numbers_BN float32, codes_BC int64.

    Codes are clamped to the range of their category: 0 to its count - 1.
    """

    counts: tuple[int, ...]
    num_numbers: int
    _coded: torch.Tensor
    _numbers: torch.Tensor
    _last: torch.Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        coded = [position for position, _ in layout.categories]
        numbers = [position for position in range(layout.num_values) if position not in set(coded)]
        self.counts = tuple(count for _, count in layout.categories)
        self.num_numbers = len(numbers)
        # Not persistent, because the blueprint determines them.
        self.register_buffer("_coded", torch.tensor(coded, dtype=torch.int64), persistent=False)
        self.register_buffer("_numbers", torch.tensor(numbers, dtype=torch.int64), persistent=False)
        self.register_buffer("_last", torch.tensor(self.counts, dtype=torch.int64) - 1, persistent=False)

    def forward(self, x_BF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes_BC = x_BF.index_select(1, self._coded).long()
        codes_BC = torch.minimum(codes_BC.clamp(min=0), self._last)
        return x_BF.index_select(1, self._numbers), codes_BC


def require_flat(layout: Layout, kind: str) -> None:
    """Raises RecipeInvalid if rows are not flat."""
    if layout.kind != "flat":
        raise RecipeInvalid(
            f"the {kind} got rows of kind {layout.kind} and shape {list(layout.shape)}",
            required="flat rows: the columns of a table",
            where="the recipe's model",
            remedy="use a cnn for images, and an rnn or a transformer for sequences and tokens",
        )
