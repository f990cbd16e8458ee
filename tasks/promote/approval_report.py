"""What a person reads who is asked to approve a version: its figures beside the champion's, and the candidates."""

from __future__ import annotations

from collections.abc import Mapping

from bloomery.data_contracts.recipe_sections.approval import ApprovalRequest
from bloomery.data_contracts.records.records import Bento
from bloomery.data_contracts.records.score_format import SCORE_NAMES, format_score_value
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.tasks.evaluation import candidate_table
from bloomery.tasks.orchestration.prefect_artifacts import log_failures
from bloomery.tasks.registry import model_registry
from bloomery.tasks.tracking import mlflow_runs

_FIGURES = {"classification": "test_accuracy", "regression": "test_rmse"}


def format_comparison(bento: Bento, request: ApprovalRequest) -> str:
    """A table in Markdown: the version that waits, and the champion that it would replace, as each was measured."""
    task = bento.choice.candidates.trained.dataset.task
    ours = _figures(bento.choice.candidate.run_id, task)
    theirs = {} if request.replaces is None else _champions(request, task)
    champion = "no champion" if request.replaces is None else f"champion, version {request.replaces}"
    head = f"| | version {request.version} | {champion} |\n| --- | ---: | ---: |\n"
    return head + "\n".join(f"| {name} | {figure} | {theirs.get(name, '–')} |" for name, figure in ours.items())


def publish_approval_request(bento: Bento, request: ApprovalRequest) -> None:
    """Afterwards the Prefect run shows what is asked, the figures and the candidates."""
    _present((bento, request))


@log_failures
def _present(asked: tuple[Bento, ApprovalRequest]) -> None:
    from prefect.artifacts import create_markdown_artifact

    bento, request = asked
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
            f"It passed its gates, and answered over HTTP as it was measured. Without an answer by "
            f"**{request.expires_at:%Y-%m-%d %H:%M}Z** it is refused.\n\n{format_comparison(bento, request)}\n\n"
            "Each as it was measured when it was made, on the rows that were held out then; the gate asks a champion "
            "for the rows that are held out today.\n\n"
            f"Answer by **Resume** above, or on a command line:\n\n"
            f"    bloomery approve {reference} --reason …\n    bloomery approve {reference} --refuse --reason …\n\n"
            f"## Candidates\n\n{candidates}\n"
        ),
    )


def _champions(request: ApprovalRequest, task: Task) -> dict[str, str]:
    champion = model_registry.find_version(f"{request.name}:{request.replaces}")
    run = champion.tags.get("candidate.run")
    return {} if run is None else {"candidate": champion.tags.get("candidate", "–"), **_figures(run, task)}


def _figures(run_id: str, task: Task) -> dict[str, str]:
    """Of a candidate, as its MLflow run has them; none where the run is gone."""
    from mlflow.exceptions import MlflowException

    try:
        run = mlflow_runs.client().get_run(run_id)
    except MlflowException:
        return {}
    return {"candidate": (run.info.run_name or "").removeprefix("candidate-"), **_in_words(run.data.metrics, task)}


def _in_words(metrics: Mapping[str, float], task: Task) -> dict[str, str]:
    name = _FIGURES[task]
    spelt = {
        f"{SCORE_NAMES[task]} on its held-out rows": (name, lambda value: format_score_value(task, value)),
        "95% interval: from": (f"{name}_low", lambda value: format_score_value(task, value)),
        "95% interval: to": (f"{name}_high", lambda value: format_score_value(task, value)),
        "size": ("size_bytes", lambda value: f"{value / 1000:,.1f} kB"),
        "p50 of one row": ("latency_b1_p50_ms", lambda value: f"{value * 1000:.0f} µs"),
        "p99 of one row": ("latency_b1_p99_ms", lambda value: f"{value * 1000:.0f} µs"),
    }
    return {words: spell(metrics[key]) for words, (key, spell) in spelt.items() if key in metrics}
