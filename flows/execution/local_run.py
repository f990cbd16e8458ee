"""Runs a recipe on this machine: starts a Prefect server and the engines, then runs the flow."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator

from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Release
from bloomery.flows.execution.ephemeral_server import ephemeral_prefect_api
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.flows.recipe.recipe_files import find_recipe, remember_recipe
from bloomery.flows.run_control.machine_requirements import check_machine_requirements
from bloomery.tasks.infrastructure.neutral_imports import import_prefect
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.orchestration.events import StageEnded, StageStarted, Waiting, emit


def run_recipe(reference: str, period: str | None = None) -> Release:
    """Runs the recipe as a Prefect flow and returns its release. Raises the errors of its stages unchanged.

    The engines that the run will need start while the Prefect server starts, on another core. If the recipe has been
    released before, no server starts, and neither Prefect nor MLflow is imported, until a stage is known to need
    computing.
    """
    require_state_folder()
    recipe = read_recipe(reference, period)
    remember_recipe(recipe.name, find_recipe(reference))
    check_machine_requirements(recipe)
    emit(StageStarted("start"))
    start_time = time.perf_counter()
    with ephemeral_prefect_api() as start_server, _stop_engines_at_end():
        wait_until_ready = None if _was_released(recipe.name) else start_server()
        from bloomery.flows.execution.dry_run import dry_run

        plan = dry_run(recipe)
        if plan.release is not None and settings().prefect_api_url is None:
            # Nothing remains to orchestrate, and no server shows the run: starting one would only delay the result.
            lookup_s = sum(stage.seconds for stage in plan.stages)
            emit(StageEnded("start", "ready", time.perf_counter() - start_time - lookup_s))
            for stage in plan.stages:
                emit(StageEnded(stage.stage, "found", stage.seconds))
            return plan.release
        wait_until_ready = wait_until_ready or start_server()
        import_prefect()
        from bloomery.flows.pipeline import pipeline
        from bloomery.flows.recipe.handover import hand_over

        missing = [stage.stage for stage in plan.stages if stage.digest is None]
        engines = _start_engines(missing, recipe.engine_settings)
        wait_until_ready()
        emit(StageEnded("start", "ready", time.perf_counter() - start_time, ", ".join(["Prefect", *engines])))
        hand_over(reference, recipe.period, recipe, plan.source)
        try:
            return pipeline(reference, recipe.period)
        except KeyboardInterrupt:
            emit(Waiting("run", "stopping: the processes of this run end"))
            raise


def _was_released(name: str) -> bool:
    """True if an earlier run released a version of this name, so that all outputs may be stored.

    Starting a server during the look-up would cost more processor time than the look-up itself.
    """
    for path in (settings().home / "stages" / "promote").glob("*/record.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(path.read_text(encoding="utf-8"))["record"]["name"] == name:
                return True
    return False


@contextlib.contextmanager
def _stop_engines_at_end() -> Iterator[None]:
    """Stops Java, however the run ends."""
    try:
        yield
    finally:
        # Where it was not imported, no session was started.
        spark_session = sys.modules.get("bloomery.tasks.infrastructure.spark_session")
        if spark_session is not None:
            spark_session.stop_session()


def _start_engines(stages: Iterable[str], engine: Engine) -> list[str]:
    """Imports and starts the engines of these stages. Returns their names."""
    names = set(stages)
    engines = []
    if "prepare" in names and engine.kind == "spark":
        from bloomery.tasks.infrastructure import spark_session

        spark_session.get_session(engine.spark)
        engines.append("Spark")
    if names & {"train", "compress"}:
        import torch  # noqa: F401

        from bloomery.tasks.tracking import mlflow_runs

        mlflow_runs.client()
        engines += ["PyTorch", "MLflow"]
    if "validate" in names:
        import great_expectations  # noqa: F401

        engines.append("Great Expectations")
    return engines
