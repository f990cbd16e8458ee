"""Options of the network `token_bag` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count


class TokenBag(Document):
    """Sums vectors of a text's tokens and of pairs of neighbouring tokens, by importance, as TF-IDF does.

    It learns from few rows. Use it with `tokenizer: words`: bytes and parts of words tell little without their order.
    """

    kind: Literal["token_bag"]
    width: Annotated[Count, Field(description="of each vector")] = 64
    pairs: Annotated[
        int, Field(ge=0, description="vectors that the pairs of neighbouring tokens share; 0: single tokens only")
    ] = 8192
    dropout: Annotated[float, Field(ge=0, lt=1, description="share of the tokens and pairs")] = 0.3
