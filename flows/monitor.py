"""The monitoring flow: a look at what a model was asked and has answered, beside what is usual for its champion."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from bloomery.data_contracts.monitoring import Findings, Monitor, span
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.monitoring import publishing
from bloomery.tasks.monitoring.monitor import observe
from bloomery.tasks.registry import model_registry


@task(name="observe", cache_policy=NO_CACHE)
def _observe(name: str, monitor: Monitor, since: datetime, until: datetime) -> Findings:
    found = observe(model_registry.version_of(f"{name}@{model_registry.CHAMPION}"), monitor, since, until)
    publishing.show(found, monitor)
    return found


@task(name="tell", cache_policy=NO_CACHE)
def _tell(found: Findings, monitor: Monitor) -> str:
    publishing.expose(found)
    return publishing.keep(found, monitor)


@task(name="page", cache_policy=NO_CACHE)
def _page(found: Findings, monitor: Monitor, run_id: str) -> None:
    publishing.add_page(found, monitor, run_id)


@flow(name="monitor", flow_run_name="{recipe}", persist_result=False, validate_parameters=True)
def monitor(recipe: str = "digits", since: datetime | None = None, until: datetime | None = None) -> Findings:
    """Compare what the champion was asked and has answered with its reference, and send an event where it has drifted.

    Args:
        recipe: a name in `deployments/`, or the path of a recipe file on the worker's machine.
        since: the start of the window; left out, it is as long as the recipe says.
        until: its end; left out, now.
    """
    require_state_folder()
    wanted = read_recipe(recipe)
    end = until or datetime.now(UTC)
    found = _observe(wanted.name, wanted.monitor, since or end - span(wanted.monitor.window), end)
    run_id = _tell(found, wanted.monitor)
    publishing.emit(found)
    _page(found, wanted.monitor, run_id)  # takes its time, for which nobody has to wait
    if flow_run.id:
        verdict = f"{len(found.alarms)} alarms" if found.alarms else "no alarm"
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=f"{found.name} v{found.version}: {verdict}")
    return found
