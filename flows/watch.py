"""A flow that checks the data source of a recipe and starts its pipeline after a change."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import ValidationError

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.flows.recipe.handover import recipe_for_run, take_recipe
from bloomery.flows.recipe.recipe import Recipe
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.ingest.change_detection import change_digest
from bloomery.tasks.ingest.stage import ingest, locate_source

NEW_DATA_EVENT = "bloomery.new-data"


class WatchState(Document):
    """The result of the last check, stored in the state folder of the machine that checks."""

    stat_digest: str  # of file sizes and modification times
    digest: str | None  # of the content, once sizes and times were unchanged for one interval
    started_digest: str | None  # the content of the last pipeline run
    num_started: int = 0  # pipeline runs started


def _flow_run_name() -> str:
    name = recipe_for_run(flow_run.parameters["recipe"]).recipe.name
    return f"watch {name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


@flow(name="watch", flow_run_name=_flow_run_name, persist_result=False, validate_parameters=True)
def watch(recipe: str) -> Any:
    """Check the recipe's data source; start `pipeline/NAME` once after a change that is complete.

    Sizes and modification times are compared first. Content is read only after they changed and were equal at two
    checks, so a file that is being written starts nothing.

    Args:
        recipe: a name in `deployments/recipes/`, or the path of a recipe file on the worker's machine.
    """
    spec = take_recipe(recipe).recipe
    path = require_state_folder().home / "watched" / f"{'-'.join(spec.title)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        return _check(spec, path)


def _check(recipe: Recipe, path: Path) -> Any:
    last = _read(path)
    try:
        stat_digest = change_digest(recipe.data)
    except DataMissing as failure:
        return Completed(name="No data", message=failure.found)
    if last is None or last.stat_digest != stat_digest:
        started_digest = None if last is None else last.started_digest
        num_started = 0 if last is None else last.num_started
        state = WatchState(stat_digest=stat_digest, digest=None, started_digest=started_digest, num_started=num_started)
        _write(path, state)
        return Completed(name="Changing", message="sizes or times differ from the last check; wait for the next")
    if last.digest is not None and last.digest == last.started_digest:
        return Completed(name="Unchanged", message=f"the data is {last.digest[:16]}")
    source = locate_source(recipe.data, recipe.contract.personal_columns)
    state = last.model_copy(update={"digest": source.digest})
    # Without an earlier start, a manual run may have used this content: then its rows are stored.
    is_known = last.started_digest is None and ingest.lookup(source) is not None
    if source.digest == last.started_digest or is_known:
        _write(path, state.model_copy(update={"started_digest": source.digest}))
        return Completed(name="Unchanged", message=f"the data is {source.digest[:16]}")
    run_id = _start_pipeline(recipe, source.digest, last)
    _write(path, state.model_copy(update={"started_digest": source.digest, "num_started": last.num_started + 1}))
    return Completed(name="New data", message=f"the data is {source.digest[:16]}: flow run {run_id}")


def _start_pipeline(recipe: Recipe, digest: str, last: WatchState) -> str:
    """Creates one run of the pipeline's deployment for this change and emits the event. Returns the run's id.

    Raises:
        RecipeInvalid: the recipe has no deployment.
    """
    deployment_name = f"pipeline/{recipe.name}"
    parameters = {} if recipe.period is None else {"period": recipe.period}
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(deployment_name)
        except ObjectNotFound as failure:
            raise RecipeInvalid(
                f"there is new data for {recipe.name}, but no deployment {deployment_name}",
                required="a deployment that runs the recipe",
                where="the Prefect server",
                remedy="create it with `bloomery up` or `prefect deploy`, see docs/operate.md",
            ) from failure
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={**deployment.parameters, **parameters},
            tags=["new-data"],
            # If this check is killed after this call, its repetition starts no second run.
            idempotency_key=f"new-data-{recipe.name}-{last.num_started}-{digest}",
        )
    emit_event(
        NEW_DATA_EVENT,
        resource={"prefect.resource.id": f"bloomery.recipe.{recipe.name}", "prefect.resource.name": recipe.name},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.role": "started"}],
        payload={
            "digest": digest,
            "before": last.started_digest,
            "period": recipe.period,
            "source": recipe.data.description,
        },
    )
    return str(run.id)


def _read(path: Path) -> WatchState | None:
    try:
        return WatchState.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def _write(path: Path, state: WatchState) -> None:
    write_text(path, state.model_dump_json(indent=1), mode=0o600)
