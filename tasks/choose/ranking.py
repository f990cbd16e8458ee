"""The candidates of a choice in a ranked table and a picture, for MLflow and for Prefect."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from bloomery.data_contracts.records.records import Candidate, Chosen, Interval, Options, Verdict
from bloomery.data_contracts.records.score_format import LOSSES, SCORES, loss_in_words, score_in_words
from bloomery.models.compression.budget import Budget
from bloomery.tasks.choose.budget_verdicts import Decision
from bloomery.tasks.choose.pareto_plot import draw_front
from bloomery.tasks.compress.candidate_measurement import times
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.prefect_artifacts import shown
from bloomery.tasks.tracking import mlflow_runs

TABLE, PICTURE = "candidates.json", "candidates.png"


def log(run_id: str, options: Options, budget: Budget, decision: Decision, picture: Path) -> None:
    """Afterwards `picture` is there, and the run has it, the ranked table and the budget."""
    chosen = decision.best.name if decision.best else None
    draw_front(options, budget, decision, picture)
    mlflow_runs.log_params(run_id, budget.model_dump())
    mlflow_runs.client().log_artifact(run_id, str(picture))
    mlflow_runs.client().log_table(run_id, as_figures(options, decision.verdicts, chosen), TABLE)


@shown
def show(record: Chosen) -> None:
    """The ranked table and the picture in the Prefect run."""
    from prefect.artifacts import create_image_artifact, create_table_artifact

    description = f"Chosen: {record.candidate.name}. The same in figures: MLflow run {record.run_id}"
    create_table_artifact(key="candidates", description=description, table=as_words(record))
    picture = settings().path(record.picture_uri)
    create_image_artifact(
        key="candidates-picture", description=str(picture), image_url=_address_of(picture, record.run_id)
    )


def _address_of(picture: Path, run_id: str) -> str:
    """Where a browser finds the picture: at MLflow's server, else in the address itself, for it opens no local file."""
    tracking_uri = settings().tracking_uri
    if tracking_uri.startswith("http"):
        return f"{tracking_uri.rstrip('/')}/get-artifact?path={PICTURE}&run_uuid={run_id}"
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def as_words(record: Chosen) -> list[dict[str, str]]:
    """A row for each candidate, best first."""
    task = record.options.trained.dataset.task
    return [
        {
            "rank": str(verdict.rank),
            "candidate": one.name,
            "verdict": outcome(verdict, record.candidate.name),
            "why": "; ".join(verdict.reasons),
            f"{SCORES[task]} (95% interval)": score_in_words(task, one.score),
            f"{LOSSES[task]}, at most": loss_in_words(task, one.worse.high),
            "size": f"{one.size_bytes:,} bytes",
            "zstd": f"{one.zstd_bytes:,} bytes",
            "coded": _in_words(one.coded_bytes, " bytes"),
            "parameters": f"{one.num_parameters:,}",
            "multiplications": _in_words(one.num_macs),
            "in integers": f"{one.integer_share:.0%}",
            "p50": f"{one.latency.p50_ms * 1000:.0f} µs",
            "p99": f"{one.latency.p99_ms * 1000:.0f} µs",
            **{
                f"time / fp32, {latency.batch_size} row{'s' if latency.batch_size > 1 else ''}": _ratio(latency.ratio)
                for latency in one.latencies
            },
            **({} if one.energy is None else {"energy / fp32": _ratio(one.energy.ratio)}),
        }
        for one, verdict in _ranked(record.options, record.verdicts)
    ]


def as_figures(options: Options, verdicts: tuple[Verdict, ...], chosen: str | None) -> dict[str, list[Any]]:
    """A column for each thing that is said of a candidate, best first."""
    loss = LOSSES[options.trained.dataset.task]
    rows = [
        {
            "rank": verdict.rank,
            "candidate": one.name,
            "verdict": outcome(verdict, chosen),
            "why": "; ".join(verdict.reasons),
            "score": one.score.value,
            loss: one.worse.value,
            f"{loss}_low": one.worse.low,
            f"{loss}_high": one.worse.high,
            "flips_lost": None if one.flips is None else one.flips.lost,
            "flips_gained": None if one.flips is None else one.flips.gained,
            "size_bytes": one.size_bytes,
            "zstd_bytes": one.zstd_bytes,
            "coded_bytes": one.coded_bytes,
            "num_parameters": one.num_parameters,
            "num_nonzero": one.num_nonzero,
            "num_macs": one.num_macs,
            "integer_share": one.integer_share,
            **times(one.latencies),
            **_energy(one),
        }
        for one, verdict in _ranked(options, verdicts)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _ranked(options: Options, verdicts: tuple[Verdict, ...]) -> list[tuple[Candidate, Verdict]]:
    return sorted(zip(options.candidates, verdicts, strict=True), key=lambda pair: pair[1].rank)


def outcome(verdict: Verdict, chosen: str | None) -> str:
    """In a word or two."""
    return "chosen" if verdict.name == chosen else "passed" if verdict.passed else "over budget"


def _energy(candidate: Candidate) -> dict[str, float]:
    """Joules for the budget's batch, if they were measured."""
    if candidate.energy is None:
        return {}
    start, ratio = f"b{candidate.energy.batch_size}", candidate.energy.ratio
    limits = {f"{start}_energy_ratio_low": ratio.low, f"{start}_energy_ratio_high": ratio.high}
    return {f"{start}_p50_j": candidate.energy.p50_j, f"{start}_energy_ratio": ratio.value, **limits}


def _in_words(count: int | None, unit: str = "") -> str:
    return "unknown" if count is None else f"{count:,}{unit}"


def _ratio(ratio: Interval) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
