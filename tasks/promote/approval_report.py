"""Publishes the report for an approver: the metrics of the version and of the champion, and the candidates."""

from __future__ import annotations

from collections.abc import Mapping

from bloomery.data_contracts.recipe_sections.approval import ApprovalRequest
from bloomery.data_contracts.records.records import Bento
from bloomery.data_contracts.records.score_format import format_score_value
from bloomery.data_contracts.records.scores import Score
from bloomery.tasks.evaluation import candidate_table
from bloomery.tasks.orchestration.prefect_artifacts import log_failures
from bloomery.tasks.registry import model_registry
from bloomery.tasks.tracking import mlflow_runs


def format_comparison(bento: Bento, request: ApprovalRequest) -> str:
    """A Markdown table with the measured metrics of the pending version and of the champion that it would replace."""
    score = bento.choice.candidates.trained.score
    pending = _read_metrics(bento.choice.candidate.run_id, score)
    current = {} if request.replaces is None else _read_champion_metrics(request, score)
    champion = "no champion" if request.replaces is None else f"champion, version {request.replaces}"
    head = f"| | version {request.version} | {champion} |\n| --- | ---: | ---: |\n"
    return head + "\n".join(f"| {name} | {value} | {current.get(name, '–')} |" for name, value in pending.items())


def publish_approval_request(bento: Bento, request: ApprovalRequest) -> None:
    """Puts the request, the metrics and the candidates into the Prefect run."""
    _publish((bento, request))


@log_failures
def _publish(request_of_bento: tuple[Bento, ApprovalRequest]) -> None:
    from prefect.artifacts import create_markdown_artifact

    bento, request = request_of_bento
    reference = f"{request.name}:{request.version}"
    rows = candidate_table.candidate_rows(bento.choice)
    names = [name for name in rows[0] if name != "rank"]
    table = [names, ["---"] * len(names), *([row[name] or " " for name in names] for row in rows)]
    candidates = "\n".join("| " + " | ".join(cells) + " |" for cells in table)
    create_markdown_artifact(
        key="approval",
        description=f"{request.name} version {request.version} waits until {request.expires_at:%Y-%m-%d %H:%M}Z",
        markdown=(
            f"# May {request.name} version {request.version} become champion?\n\n"
            "It passed its gates and its smoke test. Without a decision by "
            f"**{request.expires_at:%Y-%m-%d %H:%M}Z** it is refused.\n\n{format_comparison(bento, request)}\n\n"
            "Each version was measured when it was trained, on its own test split; the gate compares both versions on "
            "the current test split.\n\n"
            f"Decide with **Resume** above, or on the command line:\n\n"
            f"    bloomery approve {reference} --reason …\n    bloomery approve {reference} --refuse --reason …\n\n"
            f"## Candidates\n\n{candidates}\n"
        ),
    )


def _read_champion_metrics(request: ApprovalRequest, score: Score) -> dict[str, str]:
    champion = model_registry.find_version(f"{request.name}:{request.replaces}")
    run = champion.tags.get("candidate.run")
    return {} if run is None else {"candidate": champion.tags.get("candidate", "–"), **_read_metrics(run, score)}


def _read_metrics(run_id: str, score: Score) -> dict[str, str]:
    """The metrics of a candidate from its MLflow run; empty if the run was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = mlflow_runs.client().get_run(run_id)
    except MlflowException:
        return {}
    return {
        "candidate": (run.info.run_name or "").removeprefix("candidate-"),
        **_format_metrics(run.data.metrics, score),
    }


def _format_metrics(metrics: Mapping[str, float], score: Score) -> dict[str, str]:
    name = f"test_{score.name}"
    formats = {
        f"{score.title} on its test split": (name, lambda value: format_score_value(score, value)),
        "95% interval: from": (f"{name}_low", lambda value: format_score_value(score, value)),
        "95% interval: to": (f"{name}_high", lambda value: format_score_value(score, value)),
        "size": ("size_bytes", lambda value: f"{value / 1000:,.1f} kB"),
        "p50 of one row": ("latency_b1_p50_ms", lambda value: f"{value * 1000:.0f} µs"),
        "p99 of one row": ("latency_b1_p99_ms", lambda value: f"{value * 1000:.0f} µs"),
    }
    return {label: to_text(metrics[key]) for label, (key, to_text) in formats.items() if key in metrics}
