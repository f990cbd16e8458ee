"""Creates what Prefect's server needs to run recipes: deployments, work pool, GPU slots and automations.

`python -m bloomery.flows.services.prefect_deployments RECIPE …` registers these recipes; without arguments, the bundled
ones; after `--`, the given recipes only, which may be none. It prints one JSON document: the deployments, or the error
of the first invalid recipe. It then ends with the exit code of that error.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.errors import BloomeryError, DataMissing, EngineMissing
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.flows.recipe.recipe_files import bundled_recipes, find_recipe, reference_of
from bloomery.flows.recipe.schedule import Schedule
from bloomery.flows.run_control.gpu_slots import GPU_LIMIT
from bloomery.tasks.infrastructure.settings import require_state_folder

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import DeploymentScheduleCreate

WORK_POOL = "bloomery"
ROOT = Path(__file__).resolve().parents[2]


def register_recipes(references: Sequence[str]) -> list[str]:
    """Creates or updates the deployments of each recipe, and everything they need.

    They are `pipeline/NAME`, `monitor/NAME`, and `watch/NAME` if the recipe watches its data. If its monitor has a
    schedule and retrains, there is an automation for that. Repeated calls update schedules from the recipes.

    Returns:
        The names of the deployments.

    Raises:
        RecipeInvalid, DataMissing and other errors of a recipe, which `found` names; then nothing is registered.
    """
    from prefect.client.orchestration import get_client

    from bloomery.flows.monitor import monitor
    from bloomery.flows.pipeline import pipeline
    from bloomery.flows.services.prefect_automations import dead_run_automation, ensure_automation, ensure_retraining
    from bloomery.flows.watch import watch

    recipes = {reference_of(find_recipe(reference)): _read_named(reference) for reference in references}
    deployments = []
    with get_client(sync_client=True) as client:
        _ensure_pool(client)
        _ensure_gpu_slots(client)
        ensure_automation(client, dead_run_automation())
        for parameter, recipe in recipes.items():
            deployments.append(_deploy(client, pipeline, parameter, recipe, recipe.description, recipe.schedule))
            cron = recipe.monitor.schedule
            description = f"Compares the requests and predictions of {recipe.name} with its reference."
            schedule = None if cron is None else Schedule(cron=cron)
            deployments.append(_deploy(client, monitor, parameter, recipe, description, schedule))
            if recipe.watch is not None:
                description = f"Checks for new data of {recipe.name}."
                schedule = Schedule(interval=recipe.watch.interval)
                deployments.append(_deploy(client, watch, parameter, recipe, description, schedule))
            else:
                _delete_deployment(client, f"watch/{recipe.name}")
    for recipe in recipes.values():
        is_enabled = recipe.monitor.retrain and recipe.monitor.schedule is not None
        ensure_retraining(recipe.name, recipe.monitor.pause, is_enabled=is_enabled)
    return deployments


def _read_named(reference: str) -> Recipe:
    try:
        return read_recipe(reference)
    except BloomeryError as error:
        details = {"required": error.required, "where": error.where, "remedy": error.remedy}
        raise type(error)(f"the recipe {reference} is invalid: {error.found}", **details) from error


def _deploy(
    client: SyncPrefectClient,
    flow: Flow[Any, Any],
    parameter: str,
    recipe: Recipe,
    description: str,
    schedule: Schedule | None,
) -> str:
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    client.create_deployment(
        flow_id=client.create_flow(flow),
        name=recipe.name,
        description=description,
        tags=["bloomery"],
        parameters={"recipe": parameter},
        parameter_openapi_schema=_schema_of_parameters(flow),
        enforce_parameter_schema=True,
        schedules=_schedules(schedule),
        concurrency_limit=1,  # a second run of a recipe waits
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
        work_pool_name=WORK_POOL,
        entrypoint=f"flows/{flow.name}.py:{flow.name}",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
    )
    return f"{flow.name}/{recipe.name}"


@functools.cache
def _schema_of_parameters(flow: Flow[Any, Any]) -> dict[str, Any]:
    """Returns the schema of a flow's parameters, which takes 0.1 s to compute; all recipes share it."""
    from prefect.utilities.callables import parameter_schema

    return parameter_schema(flow).model_dump_for_openapi()


def _delete_deployment(client: SyncPrefectClient, name: str) -> None:
    """Deletes the deployment if it exists."""
    from prefect.exceptions import ObjectNotFound

    with contextlib.suppress(ObjectNotFound):
        client.delete_deployment(client.read_deployment_by_name(name).id)


def _schedules(schedule: Schedule | None) -> list[DeploymentScheduleCreate]:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if schedule is None:
        return []
    trigger: CronSchedule | IntervalSchedule
    if schedule.interval is None:
        trigger = CronSchedule(cron=schedule.cron or "", timezone=schedule.timezone)
    else:
        trigger = IntervalSchedule(interval=schedule.interval, timezone=schedule.timezone)
    return [DeploymentScheduleCreate(schedule=trigger, active=schedule.active)]


def _ensure_pool(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process", description="runs of recipes"))


def _ensure_gpu_slots(client: SyncPrefectClient) -> None:
    num_gpus = _count_gpus()
    if num_gpus:
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, num_gpus)


def _count_gpus() -> int:
    """Returns the number of NVIDIA GPUs that `nvidia-smi` lists; importing torch for it would take seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    listing = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=30)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def main() -> None:
    try:
        require_state_folder()
        arguments = sys.argv[1:]
        references = arguments[1:] if arguments[:1] == ["--"] else arguments or _installed_recipes()
        document: dict[str, Any] = {"deployments": register_recipes(references)}
    except BloomeryError as error:
        print(json.dumps(error.as_document()))
        raise SystemExit(error.exit_code) from None
    print(json.dumps(document))


def _installed_recipes() -> list[str]:
    """The bundled recipes, except those whose checkpoint is in a package that is not installed, or not downloaded."""
    names = []
    for name in bundled_recipes():
        with contextlib.suppress(EngineMissing, DataMissing):
            read_recipe(name)
            names.append(name)
    return names


def failure_reason(output: str) -> str:
    """Returns the reason from the output of a registration that failed."""
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["found"])
    return lines[-1][:300]


if __name__ == "__main__":
    main()
