"""Parts of a recipe that say by what means something is done, and not what comes out of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document


class Means(Document):
    """Does not count when the output of an earlier run is looked for: whatever it says, the output is the same."""


class SparkConfig(Document):
    """Where Spark runs, and its own settings."""

    master: Annotated[
        str | None, Field(description="local[N], spark://…, yarn, k8s://… or sc://…; else BLOOMERY_SPARK_MASTER")
    ] = None
    settings: dict[str, str] = Field(default_factory=dict)


class Engine(Means):
    """What prepares the data: this machine alone, or Spark. `auto` takes Spark where a cluster is named and needed."""

    kind: Literal["auto", "local", "spark"] = "auto"
    spark: SparkConfig = SparkConfig()
