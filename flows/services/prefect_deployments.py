"""What Prefect's server has to know before it runs recipes by itself: deployments, pool, slots, what a dead run is.

`python -m bloomery.flows.services.prefect_deployments RECIPE …` makes it so for these recipes, without any for those
that come along. It prints what is there as one JSON document; or, of the first recipe that is refused, why, and ends
with its error's exit code.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.errors import BloomeryError
from bloomery.data_contracts.monitoring import span
from bloomery.flows.recipe.recipe import Recipe, known_recipes, read_recipe
from bloomery.flows.recipe.schedule import Schedule
from bloomery.flows.run_control.gpu_slots import LIMIT
from bloomery.tasks.infrastructure.settings import require_state_folder

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentScheduleCreate

POOL = "bloomery"
ROOT = Path(__file__).resolve().parents[2]


def register(references: Sequence[str]) -> list[str]:
    """Afterwards the server has the deployments of each recipe, and all that they need.

    They are `pipeline/NAME`, `monitor/NAME`, and `watch/NAME` where it watches its data. Where its monitor has a
    schedule and is to train anew, there is the automation for that.

    It may be called again at any time: what a recipe says now is what counts, its schedules too.

    Returns:
        The deployments' names.

    Raises:
        RecipeInvalid, DataMissing and the others of a recipe that is refused, which is named in `found`; nothing is
            registered then.
    """
    from prefect.client.orchestration import get_client

    from bloomery.flows.monitor import monitor
    from bloomery.flows.pipeline import pipeline
    from bloomery.flows.services.prefect_automations import crash_dead_runs, ensure, ensure_retraining
    from bloomery.flows.watch import watch

    recipes = {_place(reference): _read(reference) for reference in references}
    told = []
    with get_client(sync_client=True) as client:
        _ensure_pool(client)
        _ensure_slots(client)
        ensure(client, crash_dead_runs())
        for place, recipe in recipes.items():
            told.append(_deploy(client, pipeline, place, recipe, recipe.description, recipe.schedule))
            looks = recipe.monitor.schedule
            words = f"Looks whether {recipe.name} is asked and answers as is usual for it."
            schedule = None if looks is None else Schedule(cron=looks)
            told.append(_deploy(client, monitor, place, recipe, words, schedule))
            if recipe.watch is not None:
                words = f"Looks for new data of {recipe.name}."
                told.append(_deploy(client, watch, place, recipe, words, Schedule(every=recipe.watch.every)))
            else:
                _forget(client, f"watch/{recipe.name}")
    for recipe in recipes.values():
        is_wanted = recipe.monitor.retrain and recipe.monitor.schedule is not None
        ensure_retraining(recipe.name, span(recipe.monitor.pause), is_wanted=is_wanted)
    return told


def _place(reference: str) -> str:
    return reference if reference in known_recipes() else str(Path(reference).resolve())


def _read(reference: str) -> Recipe:
    try:
        return read_recipe(reference)
    except BloomeryError as error:
        told = {"required": error.required, "where": error.where, "remedy": error.remedy}
        raise type(error)(f"the recipe {reference} is refused: {error.found}", **told) from error


def _deploy(
    client: SyncPrefectClient,
    flow: Flow[Any, Any],
    place: str,
    recipe: Recipe,
    description: str,
    schedule: Schedule | None,
) -> str:
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
    from prefect.utilities.callables import parameter_schema

    client.create_deployment(
        flow_id=client.create_flow(flow),
        name=recipe.name,
        description=description,
        tags=["bloomery"],
        parameters={"recipe": place},
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        enforce_parameter_schema=True,
        schedules=_schedules(schedule),
        concurrency_limit=1,  # a second run of one recipe waits
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        work_pool_name=POOL,
        entrypoint=f"flows/{flow.name}.py:{flow.name}",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
    )
    return f"{flow.name}/{recipe.name}"


def _forget(client: SyncPrefectClient, named: str) -> None:
    """Afterwards there is no such deployment."""
    from prefect.exceptions import ObjectNotFound

    with contextlib.suppress(ObjectNotFound):
        client.delete_deployment(client.read_deployment_by_name(named).id)


def _schedules(stated: Schedule | None) -> list[DeploymentScheduleCreate]:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if stated is None:
        return []
    schedule: CronSchedule | IntervalSchedule
    if stated.every is None:
        schedule = CronSchedule(cron=stated.cron or "", timezone=stated.timezone)
    else:
        schedule = IntervalSchedule(interval=stated.every, timezone=stated.timezone)
    return [DeploymentScheduleCreate(schedule=schedule, active=stated.active)]


def _ensure_pool(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", description="runs of recipes"))


def _ensure_slots(client: SyncPrefectClient) -> None:
    num_cards = _num_cards()
    if num_cards:
        client.upsert_global_concurrency_limit_by_name(LIMIT, num_cards)


def _num_cards() -> int:
    """Of NVIDIA's, as far as its own program tells: to ask torch takes seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listed = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=30)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def main() -> None:
    try:
        require_state_folder()
        told: dict[str, Any] = {"deployments": register(sys.argv[1:] or known_recipes())}
    except BloomeryError as error:
        print(json.dumps(error.as_document()))
        raise SystemExit(error.exit_code) from None
    print(json.dumps(told))


def why_ended(said: str) -> str:
    """The reason, from all that a registration which ended badly has said."""
    lines = [line for line in said.splitlines() if line.strip()] or ["it said nothing"]
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["found"])
    return lines[-1][:300]


if __name__ == "__main__":
    main()
