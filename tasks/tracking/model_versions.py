"""A version of a registered model, as it was when it was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class ModelVersion(NamedTuple):
    """A version with its tags. The names are those of MLflow's entity."""

    name: str
    version: str
    tags: Mapping[str, str]
    description: str | None
    creation_timestamp: int  # milliseconds since 1970
    source: str  # address of its MLflow model

    @classmethod
    def from_mlflow(cls, entity: Any) -> ModelVersion:
        """Returns the version that MLflow's client has returned."""
        return cls(
            entity.name,
            str(entity.version),
            dict(entity.tags),
            entity.description,
            int(entity.creation_timestamp),
            entity.source or "",
        )
