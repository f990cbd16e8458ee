"""The order of the eight stages. `run_stages` is the architecture diagram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.approval import Terms
from bloomery.data_contracts.recipe_sections.data_source import Source
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.provenance import Stated
from bloomery.data_contracts.records.records import (
    Bento,
    CheckedRows,
    Chosen,
    Dataset,
    Options,
    RawRows,
    Release,
    Start,
    Trained,
)
from bloomery.flows.recipe.recipe import Recipe
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.config import Compression
from bloomery.models.evaluation.gates import Gates
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training


@dataclass(frozen=True)
class Stages:
    """The eight stages as callables: Prefect tasks, plain functions, or cache look-ups that run nothing."""

    ingest: Callable[[Source], RawRows]
    validate: Callable[[RawRows, Contract], CheckedRows]
    prepare: Callable[[CheckedRows, Features, Engine], Dataset]
    train: Callable[[Dataset, Model, Training, Start | None, Engine], Trained]
    compress: Callable[[Trained, Compression], Options]
    choose: Callable[[Options, Budget], Chosen]
    package: Callable[[Chosen, str, Stated], Bento]
    promote: Callable[[Bento, Gates, Terms], Release]


def run_stages(stages: Stages, recipe: Recipe, source: Source, start: Start | None) -> Release:
    rows = stages.ingest(source)
    checked = stages.validate(rows, recipe.contract)
    dataset = stages.prepare(checked, recipe.features, recipe.engine_settings)
    trained = stages.train(dataset, recipe.model, recipe.training, start, recipe.engine_settings)
    options = stages.compress(trained, recipe.compression)
    chosen = stages.choose(options, recipe.budget)
    bento = stages.package(chosen, recipe.name, recipe.as_stated)
    return stages.promote(bento, recipe.gates, recipe.promotion_terms)
