"""A light flow that looks at a recipe's source and starts its pipeline once what lies there has changed."""

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
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.serving.champion_pointer import replace_text
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.ingest.change_detection import stamp_of
from bloomery.tasks.ingest.stage import ingest, locate

NEW_DATA = "bloomery.new-data"
ROOT = Path(__file__).resolve().parent.parent


class Seen(Document):
    """What the last look saw. It is kept in the state folder of the machine that looks."""

    stamp: str  # of sizes and times
    digest: str | None  # of the content with that stamp, once it was still for one interval
    started: str | None  # the digest for which a pipeline was started last, or which a run had
    number: int = 0  # pipelines started


def _run_name() -> str:
    return f"watch {read_recipe(flow_run.parameters['recipe']).name} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


@flow(name="watch", flow_run_name=_run_name, persist_result=False, validate_parameters=True)
def watch(recipe: str) -> Any:
    """Look at the recipe's source; if it has changed since the last run and is still, start `pipeline/NAME` once.

    Sizes and times are looked at first; content is read only where these have changed, and are the same at two looks,
    so a file that is being written starts nothing.

    Args:
        recipe: a name in `deployments/`, or the path of a recipe file on the worker's machine.
    """
    wanted = read_recipe(recipe)
    place = require_state_folder().home / "watched" / f"{'-'.join(wanted.title)}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        return _look(wanted, place)


def _look(recipe: Recipe, place: Path) -> Any:
    before = _read(place)
    try:
        stamp = stamp_of(recipe.data)
    except DataMissing as failure:
        return Completed(name="Nothing there", message=failure.found)
    if before is None or before.stamp != stamp:
        started = None if before is None else before.started
        number = 0 if before is None else before.number
        _write(place, Seen(stamp=stamp, digest=None, started=started, number=number))
        return Completed(name="Moving", message="sizes or times are other than at the last look; wait for the next")
    if before.digest is not None and before.digest == before.started:
        return Completed(name="Unchanged", message=f"the data is {before.digest[:16]}")
    source = locate(recipe.data, recipe.contract.personal_columns)
    seen = before.model_copy(update={"digest": source.digest})
    # What no look has started may have been run by hand: its rows are there then.
    if source.digest == before.started or (before.started is None and ingest.lookup(source) is not None):
        _write(place, seen.model_copy(update={"started": source.digest}))
        return Completed(name="Unchanged", message=f"the data is {source.digest[:16]}")
    run = _start(recipe, source.digest, before)
    _write(place, seen.model_copy(update={"started": source.digest, "number": before.number + 1}))
    return Completed(name="New data", message=f"the data is {source.digest[:16]}: flow run {run}")


def _start(recipe: Recipe, digest: str, before: Seen) -> str:
    """Afterwards the event is told, and the pipeline's deployment has one run for this change. Returns the run's id.

    Raises:
        RecipeInvalid: the recipe has no deployment.
    """
    named = f"pipeline/{recipe.name}"
    parameters = {} if recipe.period is None else {"period": recipe.period}
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(named)
        except ObjectNotFound as failure:
            raise RecipeInvalid(
                f"there is new data for {recipe.name}, and no deployment {named}",
                required="a deployment that runs the recipe",
                where="the Prefect server",
                remedy="make it with `bloomery up`, or with `prefect deploy`; docs/operate.md says more",
            ) from failure
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={**deployment.parameters, **parameters},
            tags=["new-data"],
            # A look that is killed behind this line starts no second run when it is made again.
            idempotency_key=f"new-data-{recipe.name}-{before.number}-{digest}",
        )
    emit_event(
        NEW_DATA,
        resource={"prefect.resource.id": f"bloomery.recipe.{recipe.name}", "prefect.resource.name": recipe.name},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.role": "started"}],
        payload={"digest": digest, "before": before.started, "period": recipe.period, "source": recipe.data.described},
    )
    return str(run.id)


def _read(place: Path) -> Seen | None:
    try:
        return Seen.model_validate_json(place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def _write(place: Path, seen: Seen) -> None:
    replace_text(place, seen.model_dump_json(indent=1))
