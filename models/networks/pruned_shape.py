"""The shape of a pretrained network that compression has made smaller than its checkpoint."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count


class PrunedShape(Document):
    """The layers that are left, in their order, and the size of each; the width of the states stays."""

    heads: Annotated[
        tuple[Count, ...], Field(description="attention heads of each layer; empty of networks that only lose units")
    ]
    units: Annotated[
        tuple[Count, ...], Field(min_length=1, description="feed-forward units of each layer, or channels in blocks")
    ]
    num_tokens: Annotated[
        Count | None, Field(description="tokens with an embedding of their own; null: all of the checkpoint")
    ] = None
    num_positions: Annotated[
        Count | None, Field(description="rows of the table of positions; null: those of the checkpoint")
    ] = None

    @model_validator(mode="after")
    def _describes_the_same_layers(self) -> Self:
        if self.heads and len(self.heads) != len(self.units):
            raise ValueError(f"`heads` describes {len(self.heads)} layers, but `units` {len(self.units)}")
        return self
