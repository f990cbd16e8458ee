"""Candidates as a table: as text for Prefect, the approval page and the model card; as numbers for MLflow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from bloomery.data_contracts.records.records import Candidate, Candidates, Choice, Interval, Latency, Verdict
from bloomery.data_contracts.records.score_format import (
    class_noun,
    degradation_name,
    format_degradation,
    format_score,
    format_score_value,
)
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import predicts_row_classes
from bloomery.models.evaluation.metrics import Z_95

PICTURE = "candidates.png"  # the plot of the candidates, under this name in MLflow and in the model card


def candidate_rows(choice: Choice) -> list[dict[str, str]]:
    """Returns a row of text for each candidate, best first."""
    score = choice.candidates.trained.score
    task = score.facts.task
    return [
        {
            "rank": str(verdict.rank),
            "candidate": candidate.name,
            "verdict": verdict_label(verdict, choice.candidate.name),
            "reason": "; ".join(verdict.reasons),
            f"{score.title} (95% interval)": format_score(score, candidate.score),
            **(
                {}
                if not predicts_row_classes(task)
                else {f"weakest {class_noun(task)}": format_weakest_class(candidate)}
            ),
            f"{degradation_name(score)}, at most": format_degradation(score, candidate.max_degradation),
            "size": f"{candidate.size_bytes:,} bytes",
            **({} if candidate.vector_bytes is None else {"vector": f"{candidate.vector_bytes:,} bytes"}),
            "zstd": f"{candidate.zstd_bytes:,} bytes",
            "coded": _format_count(candidate.coded_bytes, " bytes"),
            "parameters": f"{candidate.num_parameters:,}",
            "multiplications": _format_count(candidate.num_macs),
            "in integers": f"{candidate.integer_share:.0%}",
            "p50": f"{candidate.latency.p50_ms * 1000:.0f} µs{candidate.latency.where}",
            "p99": f"{candidate.latency.p99_ms * 1000:.0f} µs{candidate.latency.where}",
            **{_ratio_heading(latency.batch_size): _format_ratio(latency.ratio) for latency in candidate.latencies},
            **({} if candidate.energy is None else {"energy / fp32": _format_ratio(candidate.energy.ratio)}),
        }
        for candidate, verdict in _sort_by_rank(choice.candidates, choice.verdicts)
    ]


def candidate_columns(
    candidates: Candidates, verdicts: tuple[Verdict, ...], chosen_name: str | None
) -> dict[str, list[Any]]:
    """Returns a column for each property of the candidates, the best candidate first."""
    degradation = degradation_name(candidates.trained.score)
    rows = [
        {
            "rank": verdict.rank,
            "candidate": candidate.name,
            "verdict": verdict_label(verdict, chosen_name),
            "reason": "; ".join(verdict.reasons),
            "score": candidate.score.value,
            **{f"test_{name}": value for name, value in candidate.metrics.items()},
            degradation: candidate.degradation.value,
            f"{degradation}_low": candidate.degradation.low,
            f"{degradation}_high": candidate.degradation.high,
            f"max_{degradation}": candidate.max_degradation,
            **_recall_columns(candidate),
            "flips_lost": None if candidate.flips is None else candidate.flips.num_lost,
            "flips_gained": None if candidate.flips is None else candidate.flips.num_gained,
            "size_bytes": candidate.size_bytes,
            **({} if candidate.vector_bytes is None else {"vector_bytes": candidate.vector_bytes}),
            "zstd_bytes": candidate.zstd_bytes,
            "coded_bytes": candidate.coded_bytes,
            "num_parameters": candidate.num_parameters,
            "num_nonzero": candidate.num_nonzero,
            "num_macs": candidate.num_macs,
            "integer_share": candidate.integer_share,
            **latency_columns(candidate.latencies),
            **_energy_columns(candidate),
        }
        for candidate, verdict in _sort_by_rank(candidates, verdicts)
    ]
    return {name: [row.get(name) for row in rows] for name in rows[0]}


def latency_columns(latencies: Iterable[Latency]) -> dict[str, float]:
    """Returns latencies by name and batch size, such as `b1_p50_ms` and `b1_ratio_high`."""
    columns: dict[str, float] = {}
    for latency in latencies:
        prefix = f"b{latency.batch_size}"
        columns |= {f"{prefix}_p50_ms": latency.p50_ms, f"{prefix}_p99_ms": latency.p99_ms}
        for name, ratio in (("ratio", latency.ratio), ("p99_ratio", latency.tail_ratio)):
            columns |= {f"{prefix}_{name}": ratio.value}
            columns |= {f"{prefix}_{name}_low": ratio.low, f"{prefix}_{name}_high": ratio.high}
    return columns


def verdict_label(verdict: Verdict, chosen_name: str | None) -> str:
    """Returns the verdict in one or two words; `chosen_name` is the name of the chosen candidate, if there is one."""
    return "chosen" if verdict.name == chosen_name else "passed" if verdict.passed else "rejected"


def format_weakest_class(candidate: Candidate, width: int | None = None) -> str:
    """Returns the lowest recall of a class and its name, of at most `width` characters, such as `92.1% 8`."""
    weakest = candidate.weakest_class
    if weakest is None:
        return ""
    name = weakest.name if width is None or len(weakest.name) <= width else f"{weakest.name[: width - 1]}…"
    return f"{weakest.recall:.1%} {name}"


def describe_other_scores(choice: Choice) -> str:
    """Returns the scores of the chosen candidate beside the recipe's own; empty if there are none."""
    score = choice.candidates.trained.score
    others = [
        (Score.model_validate({"name": name}), value)
        for name, value in choice.candidate.metrics.items()
        if name != score.name
    ]
    texts = [f"{other.title} {format_score_value(other, value)}" for other, value in others]
    return f"{choice.candidate.name} also has {', '.join(texts)}" if texts else ""


def explain_baseline(choice: Choice) -> str | None:
    """Returns a sentence that says why the network as trained was chosen; None if a compressed candidate was."""
    rivals = [verdict for verdict in choice.verdicts if verdict.name != choice.candidates.baseline]
    if choice.candidate.name != choice.candidates.baseline or not rivals:
        return None
    title = choice.candidates.trained.score.title
    kinds = {
        "accuracy_drop": f"not shown to keep the {title}",
        "error_rise": f"not shown to keep the {title}",
        "class_drop": "worse in a class",
        "slice_drop": "worse in a slice",
        "slice_rise": "worse in a slice",
        "objective.size": "larger",
        "objective.latency": "not shown to be faster",
        "objective.energy": "not shown to take less energy",
        "size_bytes": "above the limit of the size",
        "vector_bytes": "with larger vectors than the limit",
        "latency_ms": "above the limit of the latency",
    }
    counts = Counter(
        kind for verdict in rivals for kind in dict.fromkeys(kinds[item.limit] for item in verdict.violations)
    )
    counts["no better by the objective"] = sum(verdict.passed for verdict in rivals)
    reasons = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    name = choice.candidates.baseline
    shortage = _describe_shortage(choice)
    return f"{name}, the network as trained, stays: of {len(rivals)} compressed candidates {reasons}{shortage}."


def _describe_shortage(choice: Choice) -> str:
    """Says that no candidate could have passed the limit of the accuracy, where there are too few rows for that.

    By Wilson's interval, n rows without a change still allow a drop of z² / (n + z²).
    """
    violations = [item for verdict in choice.verdicts for item in verdict.violations if item.limit == "accuracy_drop"]
    score = choice.candidates.trained.score
    compared = [candidate.disagreements for candidate in choice.candidates.candidates if candidate.disagreements]
    if score.name not in ("accuracy", "subset_accuracy") or not violations or not compared:
        return ""
    limit = min(item.allowed for item in violations)
    num_rows = max(sum(split.num_rows for split in disagreements) for disagreements in compared)
    needed = math.ceil(Z_95**2 * (1 - limit) / limit)
    if num_rows >= needed:
        return ""
    highest = format_degradation(score, limit)
    return f"; {num_rows} rows cannot show a drop of at most {highest}, which takes {needed} rows without any change"


def _recall_columns(candidate: Candidate) -> dict[str, Any]:
    """The weakest class and its recall; None of a regression."""
    weakest = candidate.weakest_class
    return {
        "weakest_class": None if weakest is None else weakest.name,
        "weakest_recall": None if weakest is None else weakest.recall,
    }


def _sort_by_rank(candidates: Candidates, verdicts: tuple[Verdict, ...]) -> list[tuple[Candidate, Verdict]]:
    return sorted(zip(candidates.candidates, verdicts, strict=True), key=lambda pair: pair[1].rank)


def _energy_columns(candidate: Candidate) -> dict[str, float]:
    """Joules for the budget's batch size; empty where energy was not measured."""
    if candidate.energy is None:
        return {}
    prefix, ratio = f"b{candidate.energy.batch_size}", candidate.energy.ratio
    limits = {f"{prefix}_energy_ratio_low": ratio.low, f"{prefix}_energy_ratio_high": ratio.high}
    return {f"{prefix}_p50_j": candidate.energy.p50_j, f"{prefix}_energy_ratio": ratio.value, **limits}


def _ratio_heading(batch_size: int) -> str:
    return f"time / fp32, {batch_size} row{'s' if batch_size > 1 else ''}"


def _format_count(count: int | None, unit: str = "") -> str:
    return "unknown" if count is None else f"{count:,}{unit}"


def _format_ratio(ratio: Interval) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
