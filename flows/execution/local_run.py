"""One run on this machine: a Prefect server for it, the engines, the flow."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator

from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Release
from bloomery.flows.execution.ephemeral_server import prefect_api
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.flows.run_control.machine_requirements import require_machine
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.orchestration.events import StageEnded, StageStarted, emit


def run_recipe(reference: str, period: str | None = None) -> Release:
    """Run the recipe as a Prefect flow and return its release. Whatever a stage raises comes through.

    While the Prefect server starts, on one core, the engines that the run will need are started on another. Where the
    recipe has a release, no server is started before it is known that anything has to be computed.
    """
    require_state_folder()
    recipe = read_recipe(reference, period)
    require_machine(recipe)
    emit(StageStarted("start"))
    begin = time.perf_counter()
    with prefect_api() as start_server, _engines_stopped():
        wait_until_ready = None if _was_released(recipe.name) else start_server()
        from bloomery.flows.execution.dry_run import plan
        from bloomery.flows.pipeline import pipeline

        planned = plan(recipe)
        if planned.release is not None and settings().prefect_api_url is None:
            # Nothing to orchestrate and nobody to see it: do not wait for a server only to look things up.
            looking_s = sum(step.seconds for step in planned.steps)
            emit(StageEnded("start", "ready", time.perf_counter() - begin - looking_s))
            for step in planned.steps:
                emit(StageEnded(step.stage, "found", step.seconds))
            return planned.release
        wait_until_ready = wait_until_ready or start_server()
        missing = [step.stage for step in planned.steps if step.found is None]
        engines = _start_engines(missing, recipe.means)
        wait_until_ready()
        emit(StageEnded("start", "ready", time.perf_counter() - begin, ", ".join(["Prefect", *engines])))
        return pipeline(reference, recipe.period)


def _was_released(name: str) -> bool:
    """Whether a run of this state folder has ended in a release of that name, so that a run may have nothing to do.

    A server that starts beside the looking costs more processor time than all of it.
    """
    for path in (settings().home / "stages" / "promote").glob("*/record.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(path.read_text(encoding="utf-8"))["record"]["name"] == name:
                return True
    return False


@contextlib.contextmanager
def _engines_stopped() -> Iterator[None]:
    """Leave no Java behind, however the run ends."""
    try:
        yield
    finally:
        from bloomery.tasks.infrastructure import spark_session

        spark_session.stop()


def _start_engines(stages: Iterable[str], means: Engine) -> list[str]:
    """Import and start what the stages will need; returns the engines' names."""
    wanted = set(stages)
    started = []
    if "prepare" in wanted and means.kind == "spark":
        from bloomery.tasks.infrastructure import spark_session

        spark_session.session(means.spark)
        started.append("Spark")
    if wanted & {"train", "compress"}:
        import torch  # noqa: F401

        from bloomery.tasks.tracking import mlflow_runs

        mlflow_runs.client()
        started += ["PyTorch", "MLflow"]
    if "validate" in wanted:
        import great_expectations  # noqa: F401

        started.append("Great Expectations")
    return started
