"""A recipe's `engine`: what prepares the data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document, NotPartOfKey


class SparkConfig(Document):
    """The Spark master and Spark's own settings."""

    master: Annotated[
        str | None, Field(description="local[N], spark://…, yarn, k8s://… or sc://…; else BLOOMERY_SPARK_MASTER")
    ] = None
    settings: dict[str, str] = Field(default_factory=dict)


class Engine(NotPartOfKey):
    """The engine that prepares the data: DuckDB on this machine, or Spark. The output is the same.

    `auto` uses Spark if a cluster is configured and the data is large.
    """

    kind: Literal["auto", "local", "spark"] = "auto"
    spark: SparkConfig = SparkConfig()
