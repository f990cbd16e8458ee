"""Checks the input of networks for images."""

from __future__ import annotations

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout


def image_shape(layout: Layout, kind: str, *, min_side: int = 1) -> tuple[int, int, int]:
    """Channels, height and width of one row, for a network of kind `kind`.

    Raises:
        RecipeInvalid: rows are not images, or have a side below `min_side` pixels.
    """
    if layout.kind != "image":
        raise RecipeInvalid(
            f"the {kind} got rows of kind {layout.kind} and shape {list(layout.shape)}",
            required="images, or audio as spectrograms: (channels, height, width)",
            where="the recipe's model",
            remedy="use an mlp for flat rows, and an rnn or a transformer for sequences and tokens",
        )
    channels, height, width = layout.shape
    if min(height, width) < min_side:
        raise RecipeInvalid(
            f"the {kind} got images of {height} x {width} pixels",
            required=f"at least {min_side} x {min_side}",
            where="the recipe's model",
            remedy="use a cnn, which accepts images of any size",
        )
    return channels, height, width
