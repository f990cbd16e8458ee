"""Candidates as a table: as text for Prefect, the approval page and the model card; as numbers for MLflow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bloomery.data_contracts.records.records import Candidate, Candidates, Choice, Interval, Latency, Verdict
from bloomery.data_contracts.records.score_format import (
    DEGRADATION_NAMES,
    SCORE_NAMES,
    format_degradation,
    format_score,
)

PICTURE = "candidates.png"  # the plot of the candidates, under this name in MLflow and in the model card


def candidate_rows(record: Choice) -> list[dict[str, str]]:
    """A row for each candidate, best first."""
    task = record.candidates.trained.dataset.task
    return [
        {
            "rank": str(verdict.rank),
            "candidate": one.name,
            "verdict": verdict_label(verdict, record.candidate.name),
            "why": "; ".join(verdict.reasons),
            f"{SCORE_NAMES[task]} (95% interval)": format_score(task, one.score),
            f"{DEGRADATION_NAMES[task]}, at most": format_degradation(task, one.degradation.high),
            "size": f"{one.size_bytes:,} bytes",
            "zstd": f"{one.zstd_bytes:,} bytes",
            "coded": _format_count(one.coded_bytes, " bytes"),
            "parameters": f"{one.num_parameters:,}",
            "multiplications": _format_count(one.num_macs),
            "in integers": f"{one.integer_share:.0%}",
            "p50": f"{one.latency.p50_ms * 1000:.0f} µs",
            "p99": f"{one.latency.p99_ms * 1000:.0f} µs",
            **{
                f"time / fp32, {latency.batch_size} row{'s' if latency.batch_size > 1 else ''}": _format_ratio(
                    latency.ratio
                )
                for latency in one.latencies
            },
            **({} if one.energy is None else {"energy / fp32": _format_ratio(one.energy.ratio)}),
        }
        for one, verdict in _sort_by_rank(record.candidates, record.verdicts)
    ]


def candidate_columns(options: Candidates, verdicts: tuple[Verdict, ...], chosen: str | None) -> dict[str, list[Any]]:
    """A column for each thing that is said of a candidate, best first."""
    loss = DEGRADATION_NAMES[options.trained.dataset.task]
    rows = [
        {
            "rank": verdict.rank,
            "candidate": one.name,
            "verdict": verdict_label(verdict, chosen),
            "why": "; ".join(verdict.reasons),
            "score": one.score.value,
            loss: one.degradation.value,
            f"{loss}_low": one.degradation.low,
            f"{loss}_high": one.degradation.high,
            "flips_lost": None if one.flips is None else one.flips.num_lost,
            "flips_gained": None if one.flips is None else one.flips.num_gained,
            "size_bytes": one.size_bytes,
            "zstd_bytes": one.zstd_bytes,
            "coded_bytes": one.coded_bytes,
            "num_parameters": one.num_parameters,
            "num_nonzero": one.num_nonzero,
            "num_macs": one.num_macs,
            "integer_share": one.integer_share,
            **latency_columns(one.latencies),
            **_energy_columns(one),
        }
        for one, verdict in _sort_by_rank(options, verdicts)
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def latency_columns(latencies: Iterable[Latency]) -> dict[str, float]:
    """The times of each batch size, such as `b1_p50_ms` and `b1_ratio_high`."""
    columns: dict[str, float] = {}
    for latency in latencies:
        start = f"b{latency.batch_size}"
        columns |= {f"{start}_p50_ms": latency.p50_ms, f"{start}_p99_ms": latency.p99_ms}
        for name, ratio in (("ratio", latency.ratio), ("p99_ratio", latency.tail_ratio)):
            columns |= {f"{start}_{name}": ratio.value}
            columns |= {f"{start}_{name}_low": ratio.low, f"{start}_{name}_high": ratio.high}
    return columns


def _sort_by_rank(options: Candidates, verdicts: tuple[Verdict, ...]) -> list[tuple[Candidate, Verdict]]:
    return sorted(zip(options.candidates, verdicts, strict=True), key=lambda pair: pair[1].rank)


def verdict_label(verdict: Verdict, chosen: str | None) -> str:
    """In a word or two."""
    return "chosen" if verdict.name == chosen else "passed" if verdict.passed else "over budget"


def _energy_columns(candidate: Candidate) -> dict[str, float]:
    """Joules for the budget's batch, if they were measured."""
    if candidate.energy is None:
        return {}
    start, ratio = f"b{candidate.energy.batch_size}", candidate.energy.ratio
    limits = {f"{start}_energy_ratio_low": ratio.low, f"{start}_energy_ratio_high": ratio.high}
    return {f"{start}_p50_j": candidate.energy.p50_j, f"{start}_energy_ratio": ratio.value, **limits}


def _ratio_heading(batch_size: int) -> str:
    return f"time / fp32, {batch_size} row{'s' if batch_size > 1 else ''}"


def _format_count(count: int | None, unit: str = "") -> str:
    return "unknown" if count is None else f"{count:,}{unit}"


def _format_ratio(ratio: Interval) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
