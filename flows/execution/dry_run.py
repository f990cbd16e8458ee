"""What a run would compute and what it would find, without running anything."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, NamedTuple

from bloomery.data_contracts.records.records import Release
from bloomery.flows.order import in_order
from bloomery.flows.recipe.recipe import Recipe


class Step(NamedTuple):
    """A stage of the plan. `found` is the digest of the record that is there, or None if it has to be computed."""

    stage: str
    found: str | None
    seconds: float = 0.0


class Plan(NamedTuple):
    """All stages in order, and what they end in if every one of them is found."""

    steps: list[Step]
    release: Release | None


class _NotThere(Exception):
    pass


def plan(recipe: Recipe) -> Plan:
    """Every stage in order. Behind the first that has to be computed nothing is looked up, for its output is not known.

    Raises:
        DataMissing: the recipe's data is not there.
    """
    from bloomery.flows.pipeline import STAGES
    from bloomery.tasks.ingest.stage import locate
    from bloomery.tasks.train.initial_weights import locate_start

    steps: list[Step] = []

    def looking(stage: Any) -> Any:
        def look(*arguments: Any) -> Any:
            begin = time.perf_counter()
            record = stage.lookup(*arguments)
            if record is None:
                raise _NotThere
            steps.append(Step(stage.name, record.digest, time.perf_counter() - begin))
            return record

        return look

    lookups: Any = SimpleNamespace(**{stage.name: looking(stage) for stage in STAGES})
    try:
        source = locate(recipe.data, recipe.contract.personal_columns)
        return Plan(steps, in_order(lookups, recipe, source, locate_start(recipe.training.start_from)))
    except _NotThere:
        return Plan([*steps, *(Step(stage.name, None) for stage in STAGES[len(steps) :])], None)
