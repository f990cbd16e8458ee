"""Options of the network `fused` of a recipe: how the features of its branches are joined."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count


class FusedOptions(Document):
    """What all branches of a fused network share: the number of their features, and the join."""

    kind: Literal["fused"]
    width: Annotated[Count, Field(description="number of features of each branch")] = 128
    join: Annotated[
        Literal["gate", "concat", "attention", "sum"],
        Field(
            description="gate: all features of a row weight each of them; attention: parts attend to parts; sum: each "
            "part has outputs of its own, which are added, so that parts can learn one after the other"
        ),
    ] = "gate"
    num_heads: Annotated[Count, Field(description="join attention only")] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    modality_dropout: Annotated[
        float | None,
        Field(
            ge=0,
            lt=1,
            description="share of the training rows that lose a part, for each part; default: 0.1 of parts that may be "
            "missing, 0 of others",
        ),
    ] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.join != "attention" and self.num_heads != type(self).model_fields["num_heads"].default:
            raise ValueError(f"`num_heads` needs `join: attention`, but join is {self.join}")
        if self.join == "attention" and self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by {self.num_heads} heads")
        return self
