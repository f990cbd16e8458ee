"""Passes a recipe that this process has read on to its flow run, so that each run reads it once."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from bloomery.data_contracts.recipe_sections.data_source import LocatedSource
from bloomery.flows.recipe.recipe import Recipe, read_recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, the run parameters it was read for, and its source if that has been located."""

    reference: str
    period: str | None
    overrides: Mapping[str, Any]
    recipe: Recipe
    source: LocatedSource | None = None


_LOADED: ContextVar[LoadedRecipe | None] = ContextVar("loaded_recipe", default=None)


def hand_over(reference: str, period: str | None, recipe: Recipe, source: LocatedSource | None = None) -> None:
    """Keeps a recipe for the next flow run that this process starts with these parameters and no overrides."""
    _LOADED.set(LoadedRecipe(reference, period, {}, recipe, source))


def recipe_for_run(
    reference: str, period: str | None = None, overrides: Mapping[str, Any] | None = None
) -> LoadedRecipe:
    """Returns the recipe kept for these parameters, or reads it and keeps it for `take_recipe`.

    Raises:
        as `read_recipe`.
    """
    loaded = _LOADED.get()
    parameters = (reference, period, dict(overrides or {}))
    if loaded is None or (loaded.reference, loaded.period, loaded.overrides) != parameters:
        loaded = LoadedRecipe(*parameters, read_recipe(*parameters))
        _LOADED.set(loaded)
    return loaded


def take_recipe(reference: str, period: str | None = None, overrides: Mapping[str, Any] | None = None) -> LoadedRecipe:
    """As `recipe_for_run`, but does not keep the recipe: the next run reads its file again.

    Raises:
        as `read_recipe`.
    """
    loaded = recipe_for_run(reference, period, overrides)
    _LOADED.set(None)
    return loaded
