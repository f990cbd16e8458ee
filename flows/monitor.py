"""The monitoring flow: compares the requests and predictions of a champion with its reference profile."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from bloomery.data_contracts.monitoring import Monitor, MonitoringReport
from bloomery.flows.recipe.handover import take_recipe
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.monitoring import publishing
from bloomery.tasks.monitoring.monitor import monitor_window
from bloomery.tasks.registry import model_registry


@task(name="compare", cache_policy=NO_CACHE)
def _compare(name: str, config: Monitor, since: datetime, until: datetime) -> MonitoringReport:
    report = monitor_window(model_registry.find_version(f"{name}@{model_registry.CHAMPION}"), config, since, until)
    publishing.publish_artifact(report, config)
    return report


@task(name="publish", cache_policy=NO_CACHE)
def _publish(report: MonitoringReport, config: Monitor) -> str:
    publishing.write_prometheus_file(report)
    return publishing.log_report(report, config)


@task(name="evidently-report", cache_policy=NO_CACHE)
def _add_evidently_report(report: MonitoringReport, config: Monitor, run_id: str) -> None:
    publishing.log_evidently_report(report, config, run_id)


@flow(name="monitor", flow_run_name="{recipe}", persist_result=False, validate_parameters=True)
def monitor(recipe: str = "digits", since: datetime | None = None, until: datetime | None = None) -> MonitoringReport:
    """Compare a champion's requests and predictions with its reference profile, and send an event for each drift.

    Args:
        recipe: a name in `deployments/recipes/`, or the path of a recipe file on the worker's machine.
        since: the start of the window; defaults to the recipe's window before `until`.
        until: the end of the window; defaults to now.
    """
    require_state_folder()
    spec = take_recipe(recipe).recipe
    end = until or datetime.now(UTC)
    report = _compare(spec.name, spec.monitor, since or end - spec.monitor.window, end)
    run_id = _publish(report, spec.monitor)
    publishing.emit_alert_events(report)
    _add_evidently_report(report, spec.monitor, run_id)  # last, since it is slow and nothing depends on it
    if flow_run.id:
        verdict = f"{len(report.alerts)} alerts" if report.alerts else "no alerts"
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, name=f"{report.name} v{report.version}: {verdict}")
    return report
