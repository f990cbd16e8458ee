"""The order of the stages. This function is the architecture diagram."""

from __future__ import annotations

from typing import Any, Protocol

from bloomery.data_contracts.recipe_sections.data_source import Source
from bloomery.data_contracts.records.records import Release, Start
from bloomery.flows.recipe.recipe import Recipe


class Stages(Protocol):
    """The eight verbs, in one of three forms: Prefect tasks, plain functions, or look-ups that run nothing."""

    ingest: Any
    validate: Any
    prepare: Any
    train: Any
    compress: Any
    choose: Any
    package: Any
    promote: Any


def in_order(stages: Stages, recipe: Recipe, source: Source, start: Start | None) -> Release:
    rows = stages.ingest(source)
    checked = stages.validate(rows, recipe.contract)
    dataset = stages.prepare(checked, recipe.features, recipe.means)
    trained = stages.train(dataset, recipe.model, recipe.training, start, recipe.means)
    options = stages.compress(trained, recipe.compression)
    chosen = stages.choose(options, recipe.budget)
    bento = stages.package(chosen, recipe.name, recipe.stated)
    release: Release = stages.promote(bento, recipe.gates, recipe.terms)
    return release
