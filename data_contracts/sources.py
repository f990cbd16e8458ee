"""Where a recipe's rows come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from data_contracts.documents import Document
from data_contracts.records import Record


class Data(Document):
    """A recipe's `data`: a Parquet file or folder, or `sklearn:NAME` for a set that scikit-learn carries."""

    source: Annotated[str, Field(min_length=1)]


class Source(Record):
    """Data that was looked for and found. `digest` changes when the data does."""

    source: str
