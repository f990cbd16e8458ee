"""The eight stages on `digits` as plain functions for the peers: each takes records and returns one.

They are the stages of `bloomery run`, so a peer's run computes and writes the same, including MLflow runs and versions.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bloomery.data_contracts.records.records import (
        Bento,
        Candidates,
        Choice,
        Dataset,
        RawRows,
        Release,
        TrainedNetwork,
        ValidRows,
    )
    from bloomery.flows.recipe.recipe import Recipe

NAMES = ("ingest", "validate", "prepare", "train", "compress", "choose", "package", "promote")


@cache
def _recipe() -> Recipe:
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.infrastructure.settings import require_state_folder

    apply_engine_environment()
    require_state_folder()
    from bloomery.flows.recipe.recipe import read_recipe

    return read_recipe("digits")


def ingest() -> RawRows:
    recipe = _recipe()
    from bloomery.tasks.ingest.stage import ingest, locate_source

    return ingest(locate_source(recipe.data, recipe.contract.personal_columns))


def validate(raw_rows: RawRows) -> ValidRows:
    recipe = _recipe()
    from bloomery.tasks.validate.stage import validate

    return validate(raw_rows, recipe.contract)


def prepare(valid_rows: ValidRows) -> Dataset:
    recipe = _recipe()
    from bloomery.tasks.infrastructure import spark_session
    from bloomery.tasks.prepare.stage import prepare

    try:
        return prepare(valid_rows, recipe.features, recipe.engine_settings)
    finally:
        spark_session.stop_session()  # no later stage needs it, and some peers' processes end here


def train(dataset: Dataset) -> TrainedNetwork:
    recipe = _recipe()
    from bloomery.tasks.train.stage import train

    return train(dataset, recipe.model, recipe.training, None, recipe.engine_settings)


def compress(trained: TrainedNetwork) -> Candidates:
    recipe = _recipe()
    from bloomery.tasks.compress.stage import compress

    return compress(trained, recipe.compression)


def choose(candidates: Candidates) -> Choice:
    recipe = _recipe()
    from bloomery.tasks.choose.stage import choose

    return choose(candidates, recipe.budget)


def package(choice: Choice) -> Bento:
    recipe = _recipe()
    from bloomery.tasks.package.stage import package

    return package(choice, recipe.name, recipe.document)


def promote(bento: Bento) -> Release:
    recipe = _recipe()
    from bloomery.tasks.promote.stage import promote

    return promote(bento, recipe.gates, recipe.promotion_terms)
