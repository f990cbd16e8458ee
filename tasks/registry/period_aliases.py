"""Versions of dated data: each is named by its period, and one of older data replaces none of newer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bloomery.data_contracts.recipe_sections.periods import start_of
from bloomery.tasks.registry import model_registry as registry
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

TAG = "period"
OLDER = "older data"


def newer(champion: ModelVersion | None, period: str | None) -> str | None:
    """The champion's period, if it begins after `period`."""
    theirs = None if champion is None else champion.tags.get(TAG)
    if theirs is None or period is None:
        return None
    return theirs if start_of(theirs) > start_of(period) else None


def keep(version: ModelVersion, period: str, champions: str) -> None:
    """Afterwards the version is named by its period, and marked as one that does not serve."""
    verdict = f"{OLDER}: of {period}, and the champion is of {champions}"
    mlflow_runs.client().set_model_version_tag(version.name, version.version, "release", verdict)
    name(version)


def name(version: ModelVersion) -> None:
    """Afterwards the alias of the version's period names it, if it has one."""
    period = version.tags.get(TAG)
    if period is not None:
        mlflow_runs.client().set_registered_model_alias(version.name, period, version.version)


def version_for(name: str, period: str, bento_digest: str) -> ModelVersion | None:
    """The version of this bento for the period, if a run has brought it to its end."""
    for version in registry.versions(name):
        tags = version.tags
        if tags.get("bento.digest") == bento_digest and tags.get(TAG) == period:
            ended = tags.get("release", "").startswith(("promoted", OLDER))
            return version if ended else None
    return None
