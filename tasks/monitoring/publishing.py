"""Publishes a monitoring report: to MLflow, to Prefect as an artifact and as events, and to Prometheus."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from bloomery.data_contracts.monitoring import Monitor, MonitoringReport
from bloomery.data_contracts.records.score_format import SCORE_NAMES, format_score
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.drift_plot import plot_drift
from bloomery.tasks.monitoring.evidently_report import REPORT, is_installed, write_report
from bloomery.tasks.orchestration.prefect_artifacts import log_failures
from bloomery.tasks.tracking import mlflow_runs

DRIFT_EVENT, SERVICE_EVENT = "bloomery.drift", "bloomery.service"  # by the kind of alert
PLOT = "drift.png"
_KINDS = ("drift", "service")
_MAX_TABLE_ROWS = 40


def event_resource(name: str) -> str:
    """Returns the Prefect resource id of events about a model."""
    return f"bloomery.model.{name}"


def log_report(report: MonitoringReport, monitor: Monitor) -> str:
    """Logs metrics, report and plot to an MLflow run in the model's experiment, and returns the run id."""
    with (
        # One at a time, so that a run that a killed process has left open can be recognized and ended.
        FileLock(settings().home / f"monitor-{report.name}.lock"),
        mlflow_runs.logged_run(
            report.name,
            "monitor",
            stage_key=f"monitor-{report.name}",
            tags={"bloomery.kind": "monitor", "bento": report.bento, "drifted": str(report.has_drifted).lower()},
        ) as run_id,
        tempfile.TemporaryDirectory() as folder,
    ):
        mlflow_runs.log_params(
            run_id,
            {"version": report.version, "since": report.since.isoformat(), "until": report.until.isoformat()},
        )
        mlflow_runs.log_metrics(run_id, dict(_metrics(report)))
        (Path(folder) / "report.json").write_text(report.model_dump_json(indent=1), encoding="utf-8")
        (Path(folder) / "report.md").write_text(render_markdown(report, None), encoding="utf-8")
        if report.drifts:
            plot_drift(report, monitor.psi, Path(folder) / PLOT)
        mlflow_runs.client().log_artifacts(run_id, folder)
    return run_id


def log_evidently_report(report: MonitoringReport, monitor: Monitor, run_id: str) -> None:
    """Adds Evidently's report to the MLflow run, if drift was found and Evidently is installed.

    Without drift the report has no reader, and it takes longer than everything else.
    """
    if not any(drift.is_drifted for drift in report.drifts) or not is_installed():
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / REPORT
        if write_report(report, monitor.psi, path):
            mlflow_runs.client().log_artifact(run_id, str(path))


def _metrics(report: MonitoringReport) -> Iterator[tuple[str, float]]:
    yield "num_rows", float(report.num_rows)
    yield "num_alerts", float(len(report.alerts))
    names = mlflow_runs.metric_names([drift.name for drift in report.drifts])
    for drift in report.drifts:
        yield f"psi/{names[drift.name]}", drift.psi
        yield f"p_value/{names[drift.name]}", drift.corrected_p_value
    requests = report.requests
    for name, value in (("p50_ms", requests.p50_ms), ("p99_ms", requests.p99_ms)):
        if value is not None:
            yield name, value
    for name, share in (("rejected", requests.rejected), ("failed", requests.failed), ("slow", requests.slow)):
        if share is not None:
            yield f"share/{name}", share.value
    if report.labelled is not None:
        yield SCORE_NAMES[report.task].lower(), report.labelled.score.value
        yield "num_labelled", float(report.labelled.num_labelled)


@log_failures
def publish_artifact(report: MonitoringReport, monitor: Monitor) -> None:
    """Adds the report with its plot to the Prefect run. Must be called in a flow run."""
    from prefect.artifacts import create_markdown_artifact

    plot = None
    if report.drifts:
        with tempfile.TemporaryDirectory() as folder:
            plot_drift(report, monitor.psi, Path(folder) / PLOT)
            plot = base64.b64encode((Path(folder) / PLOT).read_bytes()).decode()
    create_markdown_artifact(
        key=f"monitor-{report.name}", description=describe_report(report)[0], markdown=render_markdown(report, plot)
    )


def emit_alert_events(report: MonitoringReport) -> list[str]:
    """Emits a Prefect event for each kind of alert, and returns the names of the events."""
    from prefect.events import emit_event

    events = []
    for event, kind in zip((DRIFT_EVENT, SERVICE_EVENT), _KINDS, strict=True):
        messages = [alert.message for alert in report.alerts if alert.kind == kind]
        if messages:
            emit_event(
                event,
                resource={"prefect.resource.id": event_resource(report.name), "prefect.resource.name": report.name},
                payload={
                    "version": report.version,
                    "bento": report.bento,
                    "since": report.since.isoformat(),
                    "until": report.until.isoformat(),
                    "alerts": messages,
                },
            )
            events.append(event)
    return events


def write_prometheus_file(report: MonitoringReport) -> Path:
    """Writes `metrics/NAME.prom` in the state folder, and returns its path.

    A flow ends before Prometheus could scrape it, and an endpoint may be on another machine, so the metrics lie in a
    file for node_exporter's textfile collector. It is replaced atomically.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()
    model_labels = {"model": report.name, "version": str(report.version)}

    def add_gauge(name: str, help_text: str, values: Mapping[Any, float], *labels: str) -> None:
        gauge = Gauge(f"bloomery_monitor_{name}", help_text, [*model_labels, *labels], registry=registry)
        for label_values, value in values.items():
            gauge.labels(*model_labels.values(), *label_values).set(value)

    drifts = report.drifts
    add_gauge("psi", "PSI of a distribution", {(drift.name,): drift.psi for drift in drifts}, "column")
    add_gauge("drifted", "1 if it is an alert", {(drift.name,): float(drift.is_drifted) for drift in drifts}, "column")
    num_alerts = {(kind,): float(sum(alert.kind == kind for alert in report.alerts)) for kind in _KINDS}
    add_gauge("alerts", "Alerts of the last window", num_alerts, "kind")
    add_gauge("rows", "Rows of the window", {(): float(report.num_rows)})
    add_gauge("window_end_timestamp_seconds", "When the window ended", {(): report.until.timestamp()})
    requests = report.requests
    shares = {"rejected": requests.rejected, "failed": requests.failed, "slow": requests.slow}
    share_values = {(name,): share.value for name, share in shares.items() if share is not None}
    add_gauge("request_share", "Share of requests that were rejected, failed or slow", share_values, "outcome")
    milliseconds = {("0.5",): requests.p50_ms, ("0.99",): requests.p99_ms}
    add_gauge(
        "request_seconds",
        "Time from the head of a request to its response",
        {quantile: value / 1000 for quantile, value in milliseconds.items() if value is not None},
        "quantile",
    )
    if report.labelled is not None:
        add_gauge("labelled_rows", "Labelled rows", {(): float(report.labelled.num_labelled)})
        add_gauge(SCORE_NAMES[report.task].lower(), "Score of labelled rows", {(): report.labelled.score.value})
    path = settings().home / "metrics" / f"{report.name}.prom"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), registry)
    return path


def describe_report(report: MonitoringReport) -> list[str]:
    """Returns one line per fact, the verdict first."""
    requests, labelled_score = report.requests, report.labelled
    num_drifted = sum(drift.is_drifted for drift in report.drifts)
    num_alerts = len(report.alerts)
    verdict = {0: "no alerts", 1: "1 alert"}.get(num_alerts, f"{num_alerts} alerts")
    lines = [
        f"{report.name} version {report.version}: {verdict}, {report.num_rows:,} rows from "
        f"{report.since:%Y-%m-%d %H:%M} to {report.until:%Y-%m-%d %H:%M} UTC",
        *(f"{alert.kind}: {alert.message}" for alert in report.alerts),
    ]
    if report.drifts:
        largest = report.drifts[0]
        lines.append(
            f"{num_drifted} of {len(report.drifts)} distributions have drifted; the largest drift is {largest.name}, "
            f"PSI {largest.psi:.3g}"
        )
    if labelled_score is not None:
        score = f"{SCORE_NAMES[report.task]} {format_score(report.task, labelled_score.score)}"
        weighted_text = ""
        if labelled_score.weighted_score is not None:
            weighted_text = f", weighted by predicted label {format_score(report.task, labelled_score.weighted_score)}"
        held_out = format_score(report.task, labelled_score.held_out_score)
        lines.append(
            f"{score}{weighted_text} on {labelled_score.num_labelled:,} labelled rows; {held_out} on held-out rows"
        )
    if requests.p50_ms is not None and requests.p99_ms is not None:
        latency = f"{requests.p50_ms:.1f} ms (p50) and {requests.p99_ms:.1f} ms (p99)"
        lines.append(f"{requests.num_timed:,} requests took {latency}")
    if requests.rejected is not None and requests.failed is not None:
        shares = f"{requests.rejected.value:.2%} violated the contract, {requests.failed.value:.2%} failed"
        lines.append(f"{requests.num_requests:,} requests arrived: {shares}")
    return [*lines, *report.notes]


def render_markdown(report: MonitoringReport, plot: str | None) -> str:
    """Returns the complete report as Markdown; `plot` is a PNG in base 64."""
    verdict, *facts = describe_report(report)
    lines = [f"# {verdict}", "", *(f"- {line}" for line in facts), ""]
    if plot is not None:
        lines += [f"![drift](data:image/png;base64,{plot})", ""]
    if report.drifts:
        lines += ["| distribution | rows | PSI | PSI by chance | test | corrected p-value | |", "| --- " * 7 + "|"]
        lines += [
            f"| {_to_cell(drift.name)} | {drift.num_rows:,} | {drift.psi:.4f} | {drift.noise_psi:.4f} | {drift.test} | "
            f"{drift.corrected_p_value:.2g} | {_drift_verdict(drift.is_drifted, drift.can_alert)} |"
            for drift in report.drifts[:_MAX_TABLE_ROWS]
        ]
        lines.append("")
    if report.requests.violations:
        lines += ["| violated rule | rows |", "| --- | --- |"]
        lines += [f"| {_to_cell(rule)} | {count} |" for rule, count in report.requests.violations]
    return "\n".join(lines) + "\n"


def _to_cell(text: str) -> str:
    """Returns the text as the cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "&#124;")


def _drift_verdict(is_drifted: bool, can_alert: bool) -> str:
    if is_drifted:
        return "**drifted**"
    return "" if can_alert else "not monitored"
