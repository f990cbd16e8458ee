"""The pipeline as a Prefect flow, and the eight stages that it is made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from pydantic import BaseModel

from bloomery.data_contracts.records.records import Release
from bloomery.flows.order import in_order
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.flows.run_control.approval_wait import promote_when_approved
from bloomery.flows.run_control.gpu_slots import with_slots
from bloomery.flows.run_control.machine_requirements import require_machine
from bloomery.flows.run_control.run_liveness import at_work_on
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.config import CompressionOrAuto
from bloomery.models.features.config import Gates
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from bloomery.tasks.choose.stage import choose
from bloomery.tasks.compress.stage import compress
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.ingest.stage import ingest, locate
from bloomery.tasks.orchestration import stage_store
from bloomery.tasks.package.stage import package
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.promote.stage import promote
from bloomery.tasks.train.initial_weights import locate_start
from bloomery.tasks.train.stage import train
from bloomery.tasks.validate.stage import validate

STAGES = (ingest, validate, prepare, train, compress, choose, package, promote)
# The stages as `in_order` takes them: plain functions, and tasks of a Prefect flow.
PLAIN: Any = SimpleNamespace(**{stage.name: stage for stage in STAGES})
AS_TASKS: Any = SimpleNamespace(**{**{stage.name: stage.as_task for stage in STAGES}, "promote": promote_when_approved})
_SECTIONS = ("model", "training", "compression", "budget", "gates")


def _run_name() -> str:
    """`digits r1a2b3c4d`: the recipe, its period if it has one, and the digest of all that it says."""
    stated = flow_run.parameters
    recipe = read_recipe(stated["recipe"], stated.get("period"), _changes(stated))
    return " ".join([*recipe.title, f"r{recipe.digest[:8]}"])


def _name(name: str) -> None:
    """Afterwards the flow run has this name, if there is one and its server answers: the release stands either way."""
    if not flow_run.id:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=name)
    except (httpx.HTTPError, PrefectException):
        logging.getLogger(__name__).warning("the flow run is not named %s", name, exc_info=True)


def _changes(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What was stated of the sections of a recipe, and no defaults."""
    found = {}
    for name in _SECTIONS:
        stated = parameters.get(name)
        if isinstance(stated, BaseModel):
            stated = stated.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if stated:
            found[name] = stated
    return found


@flow(name="pipeline", flow_run_name=_run_name, persist_result=False, validate_parameters=True)
def pipeline(
    recipe: str = "digits",
    period: str | None = None,
    model: Model | None = None,
    training: Training | None = None,
    compression: CompressionOrAuto | None = None,
    budget: Budget | None = None,
    gates: Gates | None = None,
) -> Release:
    """Move a recipe from rows to a served champion.

    Args:
        recipe: a name in `deployments/`, or the path of a recipe file on the worker's machine.
        period: of a dated recipe, such as 2019-02; left out, the newest one that has ended.
        model: values in the place of the recipe's; what is left out stays as the file has it.
        training: likewise, such as {"epochs": 3}.
        compression: likewise.
        budget: likewise.
        gates: likewise.
    """
    stated = {"model": model, "training": training, "compression": compression, "budget": budget, "gates": gates}
    require_state_folder()
    wanted = read_recipe(recipe, period, _changes(stated))
    require_machine(wanted)
    stage_store.sweep()
    with_cards = {name: with_slots(getattr(AS_TASKS, name), wanted.gpu_slots) for name in ("train", "compress")}
    stages = SimpleNamespace(**{**vars(AS_TASKS), **with_cards})
    with at_work_on(flow_run.id, settings().home):
        try:
            source = locate(wanted.data, wanted.contract.personal_columns)
            release = in_order(stages, wanted, source, locate_start(wanted.training.start_from))
        finally:
            spark_session.stop()
    _name(" ".join([*wanted.title, f"v{release.version}", f"r{wanted.digest[:8]}"]))
    return release
