"""The order of the eight stages. `run_stages` is the architecture diagram."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.approval import PromotionTerms
from bloomery.data_contracts.recipe_sections.data_source import LocatedSource
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.provenance import RecipeDocument
from bloomery.data_contracts.records.records import (
    Bento,
    Candidates,
    Choice,
    Dataset,
    InitialWeights,
    RawRows,
    Release,
    TrainedNetwork,
    ValidRows,
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

    ingest: Callable[[LocatedSource], RawRows]
    validate: Callable[[RawRows, Contract], ValidRows]
    prepare: Callable[[ValidRows, Features, Engine], Dataset]
    train: Callable[[Dataset, Model, Training, InitialWeights | None, Engine], TrainedNetwork]
    compress: Callable[[TrainedNetwork, Compression], Candidates]
    choose: Callable[[Candidates, Budget], Choice]
    package: Callable[[Choice, str, RecipeDocument], Bento]
    promote: Callable[[Bento, Gates, PromotionTerms], Release]


def update_choice(release: Release, choice: Choice) -> Release:
    """Returns the release with this run's verdicts: an earlier run may have stored it, for another budget."""
    return release.model_copy(update={"bento": release.bento.model_copy(update={"choice": choice})})


def run_stages(stages: Stages, recipe: Recipe, source: LocatedSource, weights: InitialWeights | None) -> Release:
    rows = stages.ingest(source)
    valid_rows = stages.validate(rows, recipe.contract)
    dataset = stages.prepare(valid_rows, recipe.features, recipe.engine_settings)
    trained = stages.train(dataset, recipe.model, recipe.training, weights, recipe.engine_settings)
    candidates = stages.compress(trained, recipe.compression)
    choice = stages.choose(candidates, recipe.budget)
    bento = stages.package(choice, recipe.name, recipe.document)
    release = stages.promote(bento, recipe.gates, recipe.promotion_terms)
    return update_choice(release, choice)
