"""What a look at a version's requests has found, told: in MLflow, in Prefect, to Prometheus, and as an event."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from bloomery.data_contracts.monitoring import Findings, Monitor
from bloomery.data_contracts.records.score_format import SCORES, score_in_words
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.drift_plot import draw_drifts
from bloomery.tasks.monitoring.evidently_report import PAGE, can_draw, draw_page
from bloomery.tasks.orchestration.prefect_artifacts import shown
from bloomery.tasks.tracking import mlflow_runs

DRIFT, SERVICE = "bloomery.drift", "bloomery.service"  # events, by the kind of alarm
PICTURE = "drift.png"
_MOST_ROWS_SHOWN = 40


def resource_of(name: str) -> str:
    """What events about a model are about."""
    return f"bloomery.model.{name}"


def keep(findings: Findings, monitor: Monitor) -> str:
    """Afterwards an MLflow run of the model's experiment has figures, findings and a picture. Returns its id."""
    with (
        # One at a time, so that what a killed look has left is known to be left, and is ended.
        FileLock(settings().home / f"monitor-{findings.name}.lock"),
        mlflow_runs.logged_run(
            findings.name,
            "monitor",
            stage_key=f"monitor-{findings.name}",
            tags={"bloomery.kind": "monitor", "bento": findings.bento, "drifted": str(findings.has_drifted).lower()},
        ) as run_id,
        tempfile.TemporaryDirectory() as folder,
    ):
        mlflow_runs.log_params(
            run_id,
            {"version": findings.version, "since": findings.since.isoformat(), "until": findings.until.isoformat()},
        )
        mlflow_runs.log_metrics(run_id, dict(_figures(findings)))
        (Path(folder) / "findings.json").write_text(findings.model_dump_json(indent=1), encoding="utf-8")
        (Path(folder) / "findings.md").write_text(as_markdown(findings, None), encoding="utf-8")
        if findings.drifts:
            draw_drifts(findings, monitor.psi, Path(folder) / PICTURE)
        mlflow_runs.client().log_artifacts(run_id, folder)
    return run_id


def add_page(findings: Findings, monitor: Monitor, run_id: str) -> None:
    """Afterwards the MLflow run of a look that found drift has Evidently's page too, where Evidently is installed.

    Of the others nobody would read it, and it takes longer than all else.
    """
    if not any(drift.is_drifted for drift in findings.drifts) or not can_draw():
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PAGE
        if draw_page(findings, monitor.psi, path):
            mlflow_runs.client().log_artifact(run_id, str(path))


def _figures(findings: Findings) -> Iterator[tuple[str, float]]:
    yield "num_rows", float(findings.num_rows)
    yield "num_alarms", float(len(findings.alarms))
    for drift in findings.drifts:
        named = drift.name.strip("()")  # MLflow takes no brackets
        yield f"psi/{named}", drift.psi
        yield f"p_value/{named}", drift.corrected
    door = findings.door
    for name, value in (("p50_ms", door.p50_ms), ("p99_ms", door.p99_ms)):
        if value is not None:
            yield name, value
    for name, share in (("refused", door.refused), ("failed", door.failed), ("slow", door.slow)):
        if share is not None:
            yield f"share/{name}", share.value
    if findings.judged is not None:
        yield SCORES[findings.task].lower(), findings.judged.score.value
        yield "num_labelled", float(findings.judged.num_labelled)


@shown
def show(findings: Findings, monitor: Monitor) -> None:
    """Afterwards the Prefect run has them as an artifact, with the picture inside. Call it in a flow run."""
    from prefect.artifacts import create_markdown_artifact

    picture = None
    if findings.drifts:
        with tempfile.TemporaryDirectory() as folder:
            draw_drifts(findings, monitor.psi, Path(folder) / PICTURE)
            picture = base64.b64encode((Path(folder) / PICTURE).read_bytes()).decode()
    create_markdown_artifact(
        key=f"monitor-{findings.name}", description=in_words(findings)[0], markdown=as_markdown(findings, picture)
    )


def emit(findings: Findings) -> list[str]:
    """Send an event for each kind of alarm that there is, about the model. Returns the events' names."""
    from prefect.events import emit_event

    sent = []
    for event, kind in ((DRIFT, "drift"), (SERVICE, "service")):
        words = [alarm.words for alarm in findings.alarms if alarm.kind == kind]
        if words:
            emit_event(
                event,
                resource={"prefect.resource.id": resource_of(findings.name), "prefect.resource.name": findings.name},
                payload={
                    "version": findings.version,
                    "bento": findings.bento,
                    "since": findings.since.isoformat(),
                    "until": findings.until.isoformat(),
                    "alarms": words,
                },
            )
            sent.append(event)
    return sent


def expose(findings: Findings) -> Path:
    """Afterwards `metrics/NAME.prom` of the state folder has the figures for Prometheus; returns the file.

    A flow ends before anybody could ask it, and an endpoint may be on another machine, so the figures wait in a file,
    which node_exporter's textfile collector reads. It is replaced in one rename.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()
    of_model = {"model": findings.name, "version": str(findings.version)}

    def gauge(name: str, words: str, told: Mapping[Any, float], *labels: str) -> None:
        made = Gauge(f"bloomery_monitor_{name}", words, [*of_model, *labels], registry=registry)
        for values, value in told.items():
            made.labels(*of_model.values(), *values).set(value)

    drifts = findings.drifts
    gauge("psi", "How far a distribution is from its reference", {(one.name,): one.psi for one in drifts}, "column")
    gauge("drifted", "1 where that is an alarm", {(one.name,): float(one.is_drifted) for one in drifts}, "column")
    kinds = ("drift", "service")
    num_alarms = {(kind,): float(sum(one.kind == kind for one in findings.alarms)) for kind in kinds}
    gauge("alarms", "Alarms of the last look", num_alarms, "kind")
    gauge("rows", "Rows that were looked at", {(): float(findings.num_rows)})
    gauge("seen_timestamp_seconds", "When the window ended", {(): findings.until.timestamp()})
    door = findings.door
    shares = {"refused": door.refused, "failed": door.failed, "slow": door.slow}
    told = {(name,): share.value for name, share in shares.items() if share is not None}
    gauge("request_share", "Requests that were refused, failed or slow", told, "outcome")
    seconds = {("0.5",): door.p50_ms, ("0.99",): door.p99_ms}
    gauge(
        "request_seconds",
        "From the head of a request to its answer",
        {quantile: value / 1000 for quantile, value in seconds.items() if value is not None},
        "quantile",
    )
    if findings.judged is not None:
        gauge("labelled_rows", "Rows with a label", {(): float(findings.judged.num_labelled)})
        gauge(SCORES[findings.task].lower(), "Of rows with a label", {(): findings.judged.score.value})
    path = settings().home / "metrics" / f"{findings.name}.prom"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(path), registry)
    return path


def in_words(findings: Findings) -> list[str]:
    """What a person is told, the verdict first."""
    door, judged = findings.door, findings.judged
    num_drifted = sum(drift.is_drifted for drift in findings.drifts)
    verdict = f"{len(findings.alarms)} alarms" if findings.alarms else "no alarm"
    lines = [
        f"{findings.name} version {findings.version}: {verdict}, {findings.num_rows:,} rows from "
        f"{findings.since:%Y-%m-%d %H:%M} to {findings.until:%Y-%m-%d %H:%M} UTC",
        *(f"{alarm.kind}: {alarm.words}" for alarm in findings.alarms),
    ]
    if findings.drifts:
        far = findings.drifts[0]
        lines.append(
            f"{num_drifted} of {len(findings.drifts)} distributions have drifted; the farthest is {far.name}, "
            f"PSI {far.psi:.3g}"
        )
    if judged is not None:
        found = f"{SCORES[findings.task]} {score_in_words(findings.task, judged.score)}"
        weighted = "" if judged.weighted is None else f", by answers {score_in_words(findings.task, judged.weighted)}"
        held_out = score_in_words(findings.task, judged.held_out)
        lines.append(f"{found}{weighted} on {judged.num_labelled:,} rows with a label; {held_out} on held-out rows")
    if door.p50_ms is not None and door.p99_ms is not None:
        lines.append(f"{door.num_timed:,} requests took {door.p50_ms:.1f} ms (p50) and {door.p99_ms:.1f} ms (p99)")
    if door.refused is not None and door.failed is not None:
        shares = f"{door.refused.value:.2%} broke the contract, {door.failed.value:.2%} failed"
        lines.append(f"{door.num_requests:,} requests came in: {shares}")
    return [*lines, *findings.notes]


def as_markdown(findings: Findings, picture: str | None) -> str:
    """All of it as a page; `picture` is a PNG in base 64."""
    first, *rest = in_words(findings)
    lines = [f"# {first}", "", *(f"- {line}" for line in rest), ""]
    if picture is not None:
        lines += [f"![drift](data:image/png;base64,{picture})", ""]
    if findings.drifts:
        lines += ["| distribution | rows | PSI | by chance | test | chance, corrected | |", "| --- " * 7 + "|"]
        lines += [
            f"| {one.name} | {one.num_rows:,} | {one.psi:.4f} | {one.noise:.4f} | {one.test} | {one.corrected:.2g} | "
            f"{'**drifted**' if one.is_drifted else '' if one.counts else 'does not count'} |"
            for one in findings.drifts[:_MOST_ROWS_SHOWN]
        ]
        lines.append("")
    if findings.door.broken:
        lines += ["| rule that requests broke | rows |", "| --- | --- |"]
        lines += [f"| {rule.replace('|', '&#124;')} | {count} |" for rule, count in findings.door.broken]
    return "\n".join(lines) + "\n"
