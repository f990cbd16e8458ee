"""choose: the best candidate within the budget."""

from __future__ import annotations

from data_contracts.digests import digest_of_document
from data_contracts.errors import NoCandidate
from data_contracts.layouts import Task
from data_contracts.records import Candidate, Chosen, Options, Verdict
from data_contracts.scores import LOSSES, SCORES, loss_in_words
from models.compression.config import Budget
from tasks import artifacts
from tasks.stages import stage
from tasks.store import Output


@stage(present=artifacts.candidates_table)
def choose(out: Output, options: Options, budget: Budget) -> Chosen:
    """The candidate that is best by the budget's objective among those that pass all its limits.

    Raises:
        NoCandidate: none passes; the message says what each one failed.
    """
    task = options.trained.dataset.task
    verdicts = tuple(judge(candidate, budget, task) for candidate in options.candidates)
    passing = [candidate for candidate, verdict in zip(options.candidates, verdicts, strict=True) if verdict.passed]
    if not passing:
        raise NoCandidate(
            "no candidate is within the budget:\n"
            + "\n".join(f"  {verdict.name}: {'; '.join(verdict.reasons)}" for verdict in verdicts),
            required=_in_words(budget, task),
            where="the recipe's budget",
            remedy="relax the limit that is missed by least, or add candidates under compression.candidates",
        )
    best = min(passing, key=lambda candidate: _cost(candidate, budget))
    return Chosen(
        candidate=best,
        verdicts=verdicts,
        options=options,
        digest=digest_of_document([best.name, best.sha256, options.digest]),
    )


def judge(candidate: Candidate, budget: Budget, task: Task) -> Verdict:
    """Whether `candidate` is within every limit of `budget`, and each limit that it is not within."""
    reasons = []
    limit = _most_worse(budget, task)
    if candidate.worse.high > limit:
        loss = loss_in_words(task, candidate.worse.high)
        reasons.append(f"{LOSSES[task]} up to {loss}, limit {loss_in_words(task, limit)}")
    if budget.size_bytes is not None and candidate.size_bytes > budget.size_bytes:
        reasons.append(f"size {candidate.size_bytes / 1000:.1f} kB, limit {budget.size_bytes / 1000:.1f} kB")
    if budget.latency_ms is not None and candidate.latency.p99_ms > budget.latency_ms:
        reasons.append(f"p99 {candidate.latency.p99_ms:.3f} ms, limit {budget.latency_ms:g} ms")
    if budget.objective == "latency" and candidate.latency.ratio > 1:
        reasons.append(f"{candidate.latency.ratio:.2f}x the time of fp32")
    return Verdict(name=candidate.name, passed=not reasons, reasons=tuple(reasons))


def _cost(candidate: Candidate, budget: Budget) -> tuple[float, float]:
    if budget.objective == "size":
        return candidate.size_bytes, candidate.latency.ratio
    return candidate.latency.ratio, candidate.size_bytes


def _most_worse(budget: Budget, task: Task) -> float:
    return budget.accuracy_drop if task == "classification" else budget.error_rise


def _in_words(budget: Budget, task: Task) -> str:
    most = loss_in_words(task, _most_worse(budget, task))
    limits = [f"a {LOSSES[task]} of {SCORES[task]} of at most {most} (end of the 95% interval)"]
    if budget.size_bytes is not None:
        limits.append(f"at most {budget.size_bytes:,} bytes")
    if budget.latency_ms is not None:
        limits.append(f"at most {budget.latency_ms:g} ms at p99")
    return ", ".join(limits)
