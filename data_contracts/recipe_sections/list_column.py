"""A recipe's `data.lists`: columns that become lists of texts."""

from __future__ import annotations

import operator
from typing import Annotated, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document

_Name = Annotated[str, Field(min_length=1)]


class ListColumn(Document):
    """How a column becomes a list of texts: from a text with a separator, from columns of 0 and 1, or as it is."""

    separator: Annotated[
        str | None, Field(min_length=1, description="between the elements of a text; a text may also be a JSON array")
    ] = None
    columns: Annotated[
        tuple[_Name, ...] | None,
        Field(
            min_length=2, description="columns of 0 and 1, or false and true: the list has the names of those with 1"
        ),
    ] = None
    values: Annotated[
        tuple[_Name, ...] | None,
        Field(min_length=1, description="the elements to keep; others are left out"),
    ] = None

    repeats: Annotated[
        bool,
        Field(
            exclude_if=operator.not_,
            description="keep all elements in their places, as of words and their tags; otherwise each element once",
        ),
    ] = False

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if self.separator is not None and self.columns is not None:
            raise ValueError("there must be either `separator` or `columns`")
        if self.repeats and (self.columns is not None or self.values is not None):
            raise ValueError("`repeats` keeps all elements of a text or list: leave out `columns` and `values`")
        if self.separator is None and self.columns is None and self.values is None:
            raise ValueError("there must be `separator`, `columns` or `values`")
        return self
