"""Candidates made up for the tests of the stage `choose`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bloomery.data_contracts.records.records import Candidates, Energy, Interval, Latency, Verdict
from bloomery.models.compression.budget import Budget
from bloomery.tasks.choose.budget_verdicts import SubgroupDegradations, decide_candidate

MakeCandidates = Callable[..., Candidates]
CandidateFields = dict[str, Any]


def around(ratio: float, spread: float) -> Interval:
    return Interval(value=ratio, low=ratio * (1 - spread), high=ratio * (1 + spread))


def latency(p99: float, ratio: float, spread: float = 0.0, batch: int = 1) -> Latency:
    limits = around(ratio, spread)
    times = dict.fromkeys(("p50_ms", "p90_ms", "p95_ms"), p99 / 2)
    return Latency(batch_size=batch, num_rounds=9, **times, p99_ms=p99, ratio=limits, tail_ratio=limits)


def candidate(
    name: str,
    *,
    size: int = 1000,
    score: float = 0.9,
    drop: float = 0.0,
    p99: float = 0.1,
    ratio: float = 1.0,
    spread: float = 0.0,
    batch_ratio: float = 1.0,
    energy: float | None = None,
) -> CandidateFields:
    """The arguments of `candidate_of` for one candidate."""
    return {
        "name": name,
        "size_bytes": size,
        "score": Interval(value=score, low=0.8, high=0.95),
        "degradation": Interval(value=0.0, low=-drop, high=drop),
        "latencies": (latency(p99, ratio, spread), latency(9 * p99, batch_ratio, batch=32)),
        "energy": energy and Energy(batch_size=1, num_rounds=9, p50_j=energy / 1e3, ratio=around(energy, spread)),
    }


def verdict_on(
    name: str, candidates: Candidates, budget: Budget, subgroups: dict[str, SubgroupDegradations] | None = None
) -> Verdict:
    return next(verdict for verdict in decide_candidate(candidates, budget, subgroups).verdicts if verdict.name == name)
