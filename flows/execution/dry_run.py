"""The dry run: which stages a run would compute and which stored outputs it would reuse. It runs nothing."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from bloomery.data_contracts.recipe_sections.data_source import LocatedSource
from bloomery.data_contracts.records.records import Release
from bloomery.flows.order import Stages, run_stages
from bloomery.flows.recipe.recipe import Recipe


class PlannedStage(NamedTuple):
    """A stage of the plan. `digest` is that of its stored output, or None if a run has to compute it."""

    stage: str
    digest: str | None
    seconds: float = 0.0


class DryRun(NamedTuple):
    """All stages in order, the located source, and the release if every output is stored."""

    stages: list[PlannedStage]
    source: LocatedSource
    release: Release | None


class _NotStored(Exception):
    """A stage has no stored output."""


def dry_run(recipe: Recipe) -> DryRun:
    """Looks up the stored output of each stage, in order.

    Stages after the first without one count as not stored, since their inputs are unknown.

    Raises:
        DataMissing: the recipe's data does not exist.
    """
    from bloomery.flows.stages import STAGES
    from bloomery.tasks.ingest.stage import locate_source
    from bloomery.tasks.train.initial_weights import locate_initial_weights

    planned: list[PlannedStage] = []
    records: dict[str, Any] = {}

    def lookup_of(stage: Any) -> Any:
        def find_output(*arguments: Any) -> Any:
            start_time = time.perf_counter()
            record = stage.lookup(*arguments)
            if record is None:
                raise _NotStored
            records[stage.name] = record
            planned.append(PlannedStage(stage.name, record.digest, time.perf_counter() - start_time))
            return record

        return find_output

    source = locate_source(recipe.data, recipe.contract.personal_columns)
    try:
        release = run_stages(
            Stages(**{stage.name: lookup_of(stage) for stage in STAGES}),
            recipe,
            source,
            locate_initial_weights(recipe.training.start_from),
        )
    except _NotStored:
        missing = (PlannedStage(stage.name, None) for stage in STAGES[len(planned) :])
        return DryRun([*planned, *missing], source, None)
    return DryRun(planned, source, release)
