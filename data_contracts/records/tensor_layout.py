"""The tensor layout of one encoded row, and the task of the network."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document

# classification: one of several classes. ordinal: the same, and the classes have an order. multilabel: any number of
# them, also none. embedding: vectors of texts, which are close to those of the texts that belong to them.
Task = Literal["classification", "regression", "multilabel", "ordinal", "embedding"]


def predicts_one_class(task: Task) -> bool:
    """Whether a row has exactly one of several classes, with or without an order."""
    return task in ("classification", "ordinal")


class Layout(Document):
    """The shape and meaning of one encoded row, float32.

    flat: (F,), a vector of values. image: (C, H, W), and audio as (1, mels, frames). sequence: (T, F), T steps of F
    values. tokens: (T,), integers below `num_tokens`, where 0 is padding at the end.
    """

    kind: Literal["flat", "image", "sequence", "tokens"]
    shape: Annotated[tuple[int, ...], Field(min_length=1)]
    num_tokens: Annotated[int | None, Field(description="tokens alone: 0 is padding, the others are words")] = None
    is_padded: Annotated[
        bool,
        Field(description="sequence alone: the last value of a step is 1, or 0 where it is padding"),
    ] = False
    categories: Annotated[
        tuple[tuple[int, int], ...],
        Field(description="flat alone: each position that holds the number of a category, and how many there are"),
    ] = ()

    @property
    def num_values(self) -> int:
        """The number of values of one row."""
        return math.prod(self.shape)
