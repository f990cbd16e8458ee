"""Versions of dated data: an alias names the version of each period, and older data never replaces newer data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bloomery.data_contracts.recipe_sections.periods import period_start
from bloomery.tasks.registry.model_registry import bento_of, list_versions
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion

TAG = "period"
OLDER = "older data"


def newer_period(champion: ModelVersion | None, period: str | None) -> str | None:
    """The champion's period, if it begins after `period`."""
    champion_period = None if champion is None or bento_of(champion) is None else champion.tags.get(TAG)
    if champion_period is None or period is None:
        return None
    return champion_period if period_start(champion_period) > period_start(period) else None


def mark_older(version: ModelVersion, period: str, champion_period: str) -> None:
    """Sets the alias of the version's period, and tags the version as one that does not serve."""
    verdict = f"{OLDER}: of {period}, and the champion is of {champion_period}"
    mlflow_runs.client().set_model_version_tag(version.name, version.version, "release", verdict)
    set_period_alias(version)


def set_period_alias(version: ModelVersion) -> None:
    """Sets the alias of the version's period to the version, if it has a period."""
    period = version.tags.get(TAG)
    if period is not None:
        mlflow_runs.client().set_registered_model_alias(version.name, period, version.version)


def find_period_version(name: str, period: str, bento_digest: str) -> ModelVersion | None:
    """The version of this bento for the period, if a run has completed it."""
    for version in list_versions(name):
        tags = version.tags
        if tags.get("bento.digest") == bento_digest and tags.get(TAG) == period:
            is_complete = tags.get("release", "").startswith(("promoted", OLDER))
            return version if is_complete else None
    return None
