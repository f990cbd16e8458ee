"""The pipeline as a Prefect flow of eight stages."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from pydantic import BaseModel

from bloomery.data_contracts.records.records import Release
from bloomery.flows.order import Stages, run_stages
from bloomery.flows.recipe.handover import recipe_for_run, take_recipe
from bloomery.flows.run_control.approval_wait import promote_when_approved
from bloomery.flows.run_control.gpu_slots import with_gpu_slots
from bloomery.flows.run_control.machine_requirements import check_machine_requirements
from bloomery.flows.run_control.run_liveness import recording_process
from bloomery.flows.stages import choose, compress, ingest, package, prepare, train, validate
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.config import CompressionOrAuto
from bloomery.models.evaluation.gates import Gates
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.ingest.stage import locate_source
from bloomery.tasks.orchestration import stage_store
from bloomery.tasks.train.initial_weights import locate_initial_weights

STAGE_TASKS = Stages(
    ingest=ingest.as_task,
    validate=validate.as_task,
    prepare=prepare.as_task,
    train=train.as_task,
    compress=compress.as_task,
    choose=choose.as_task,
    package=package.as_task,
    promote=promote_when_approved,
)
_SECTIONS = ("model", "training", "compression", "budget", "gates")


def _flow_run_name() -> str:
    """`digits r1a2b3c4d`: the recipe, its period if it has one, and the recipe's digest."""
    parameters = flow_run.parameters
    recipe = recipe_for_run(parameters["recipe"], parameters.get("period"), _overrides(parameters)).recipe
    return " ".join([*recipe.title, f"r{recipe.digest[:8]}"])


def _rename_flow_run(name: str) -> None:
    """Renames the flow run. A failure is logged only: the release is valid either way."""
    if not flow_run.id:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=name)
    except (httpx.HTTPError, PrefectException):
        logging.getLogger(__name__).warning("the flow run could not be renamed to %s", name, exc_info=True)


def _overrides(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the explicitly set values of each recipe section, without defaults."""
    overrides = {}
    for name in _SECTIONS:
        section = parameters.get(name)
        if isinstance(section, BaseModel):
            section = section.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if section:
            overrides[name] = section
    return overrides


@flow(name="pipeline", flow_run_name=_flow_run_name, persist_result=False, validate_parameters=True)
def pipeline(
    recipe: str = "digits",
    period: str | None = None,
    model: Model | None = None,
    training: Training | None = None,
    compression: CompressionOrAuto | None = None,
    budget: Budget | None = None,
    gates: Gates | None = None,
) -> Release:
    """Run a recipe from raw rows to a served champion.

    Args:
        recipe: a name in `deployments/recipes/`, or the path of a recipe file on the worker's machine.
        period: the period of a dated recipe, such as 2019-02; defaults to the latest complete one.
        model: values that override the recipe's; values left out stay as the file has them.
        training: overrides, such as {"epochs": 3}.
        compression: overrides.
        budget: overrides.
        gates: overrides.
    """
    require_state_folder()
    sections = {"model": model, "training": training, "compression": compression, "budget": budget, "gates": gates}
    loaded = take_recipe(recipe, period, _overrides(sections))
    spec = loaded.recipe
    check_machine_requirements(spec)
    stage_store.remove_leftovers()
    stages = dataclasses.replace(
        STAGE_TASKS,
        train=with_gpu_slots(STAGE_TASKS.train, spec.gpu_slots),
        compress=with_gpu_slots(STAGE_TASKS.compress, spec.gpu_slots),
    )
    with recording_process(flow_run.id, settings().home):
        try:
            source = loaded.source or locate_source(spec.data, spec.contract.personal_columns)
            release = run_stages(stages, spec, source, locate_initial_weights(spec.training.start_from))
        finally:
            spark_session.stop_session()
    _rename_flow_run(" ".join([*spec.title, f"v{release.version}", f"r{spec.digest[:8]}"]))
    return release
