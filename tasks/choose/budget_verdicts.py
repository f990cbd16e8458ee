"""Whether candidates are within a budget, which of them is best, and why each of the others is not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Literal, NamedTuple

from bloomery.data_contracts.errors import NoCandidate
from bloomery.data_contracts.records.records import BudgetViolation, Candidate, Candidates, Interval, Verdict
from bloomery.data_contracts.records.score_format import DEGRADATION_NAMES, SCORE_NAMES, format_degradation
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.pareto_front import dominates
from bloomery.models.evaluation.metrics import Z_95
from bloomery.models.profiling.latency import TIMED_BATCH_SIZES
from bloomery.tasks.evaluation.scoring import SliceDegradation

Spent = Literal["time", "energy"]
_OBJECTIVES = {"time": "objective.latency", "energy": "objective.energy"}
_FEWEST_ROWS = 30  # of a slice of a regression: a bootstrap of fewer rows tells little


class SubgroupDegradations(NamedTuple):
    """How much worse a candidate is in each slice, and among the rows of each class."""

    slices: Sequence[SliceDegradation] = ()
    classes: Sequence[SliceDegradation] = ()


_NO_PARTS = SubgroupDegradations()


class Decision(NamedTuple):
    """The best candidate, if any is within the budget, and a verdict for each in the order of the candidates."""

    best: Candidate | None
    verdicts: tuple[Verdict, ...]


def decide_candidate(
    options: Candidates, budget: Budget, parts: Mapping[str, SubgroupDegradations] | None = None
) -> Decision:
    """The candidate with the least cost within all limits; `parts` by name, where the budget asks for them."""
    task = options.trained.dataset.task
    baseline = find_baseline(options)
    found = {
        one.name: find_violations(one, budget, task, (parts or {}).get(one.name, _NO_PARTS))
        for one in options.candidates
    }
    passing = [one for one in options.candidates if not found[one.name]]
    ranked = sorted(
        passing, key=lambda one: (objective_cost(one, baseline, budget), one.size_bytes, one.latency.ratio.value)
    )
    best = ranked[0] if ranked else None
    failing = [one for one in options.candidates if found[one.name]]
    failing.sort(key=lambda one: _excess(found[one.name]))
    ranks = {one.name: rank for rank, one in enumerate([*ranked, *failing], 1)}
    verdicts = []
    for one in options.candidates:
        reasons = [missed.message for missed in found[one.name]]
        if not reasons and best is not None and one.name != best.name:
            reasons = [_why_lost(one, best, ranked, baseline, budget, task)]
        verdicts.append(
            Verdict(
                name=one.name,
                rank=ranks[one.name],
                passed=not found[one.name],
                violations=tuple(found[one.name]),
                reasons=tuple(reasons),
            )
        )
    return Decision(best, tuple(verdicts))


def find_baseline(options: Candidates) -> Candidate:
    """The network as trained."""
    return next(one for one in options.candidates if one.name == options.baseline)


def objective_cost(candidate: Candidate, baseline: Candidate, budget: Budget) -> float:
    """The geometric mean of the ratios to `baseline` that the objective weighs; less is better."""
    weights = budget.objective
    weighed = weights.size * math.log(candidate.size_bytes / baseline.size_bytes)
    weighed += sum(weight * math.log(ratio.value) for _, weight, ratio in _ratios(candidate, budget))
    return math.exp(weighed / (weights.size + weights.latency + weights.energy))


def _ratios(candidate: Candidate, budget: Budget) -> Iterator[tuple[Spent, float, Interval]]:
    """What is spent on an answer, as a ratio to fp32 at the budget's batch, and how much the objective weighs it."""
    weights = budget.objective
    if weights.latency:
        yield "time", weights.latency, candidate.latency_at(budget.batch_size).ratio
    if weights.energy:
        assert candidate.energy is not None
        yield "energy", weights.energy, candidate.energy.ratio


def pareto_costs(candidate: Candidate, budget: Budget, task: Task) -> tuple[float, ...]:
    """What candidates are compared by, each less where better: score, size, time, and energy if it counts."""
    score = candidate.score.value
    time = candidate.latency_at(budget.batch_size).ratio.value
    energy = [ratio.value for spent, _, ratio in _ratios(candidate, budget) if spent == "energy"]
    return (-score if task == "classification" else score), candidate.size_bytes, time, *energy


def find_violations(
    candidate: Candidate, budget: Budget, task: Task, parts: SubgroupDegradations = _NO_PARTS
) -> list[BudgetViolation]:
    """Each limit of `budget` that `candidate` is not within."""
    missed = []
    overall, of_slices = _limits_of_score(task)
    limit = getattr(budget, overall)
    if candidate.degradation.high > limit:
        high = format_degradation(task, candidate.degradation.high)
        words = f"{DEGRADATION_NAMES[task]} up to {high}, limit {format_degradation(task, limit)}"
        missed.append(_missed(overall, limit, candidate.degradation.high, words))
    missed += _missed_in(parts.slices, of_slices, getattr(budget, of_slices), task)
    missed += _missed_in(parts.classes, "class_drop", budget.class_drop, task)
    if budget.size_bytes is not None and candidate.size_bytes > budget.size_bytes:
        words = f"size {candidate.size_bytes / 1000:.1f} kB, limit {budget.size_bytes / 1000:.1f} kB"
        missed.append(_missed("size_bytes", budget.size_bytes, candidate.size_bytes, words, digits=3))
    latency = candidate.latency_at(budget.batch_size)
    if budget.latency_ms is not None:
        limit, percentile = budget.latency_ms.value, budget.latency_ms.percentile
        measured = latency.percentile_ms(percentile)
        if measured > limit:
            words = f"p{percentile} {measured:.3f} ms{_of_batch(budget.batch_size)}, limit {limit:g} ms"
            missed.append(_missed("latency_ms", limit, measured, words, digits=3))
    # Who asks for less time or energy must not be given more of it. By the upper limit: to be faster has to be shown,
    # as to be no worse has to be.
    for spent, _, ratio in _ratios(candidate, budget):
        if ratio.high > 1:
            missed.append(_missed(_OBJECTIVES[spent], 1.0, ratio.high, _more_in_words(spent, ratio, budget)))
    return missed


def _more_in_words(spent: Spent, ratio: Interval, budget: Budget) -> str:
    more, less = {"time": ("slower", "be faster"), "energy": ("takes more energy", "take less energy")}[spent]
    told = f"{more} than fp32" if ratio.low > 1 else f"not shown to {less} than fp32"
    limits = f"95% interval {ratio.low:.2f} to {ratio.high:.2f}"
    return f"{told}: {ratio.value:.2f}x its {spent}{_of_batch(budget.batch_size)} ({limits})"


def _of_batch(batch: int) -> str:
    return "" if batch == 1 else f" for {batch} rows"


def _limits_of_score(task: Task) -> tuple[str, str]:
    """The names of the limits: over all rows, and in each slice."""
    return ("accuracy_drop", "slice_drop") if task == "classification" else ("error_rise", "slice_rise")


def has_enough_rows(part: SliceDegradation, limit: float, task: Task) -> bool:
    """Whether `part` has enough rows: one that is answered like fp32 in each of them would be within `limit`.

    By Tango's interval n rows without a change leave a drop of z² / (n + z²) possible.
    """
    if task == "regression":
        return part.num_rows >= _FEWEST_ROWS
    return Z_95**2 / (part.num_rows + Z_95**2) <= limit


def _missed_in(
    parts: Sequence[SliceDegradation], name: str, limit: float | None, task: Task
) -> Iterator[BudgetViolation]:
    if limit is None:
        return
    over = [part for part in parts if has_enough_rows(part, limit, task) and part.degradation.high > limit]
    if not over:
        return
    worst = max(over, key=lambda part: part.degradation.high)
    more = f", and over it in {len(over) - 1} more" if len(over) > 1 else ""
    words = f"{DEGRADATION_NAMES[task]} in {worst} up to {format_degradation(task, worst.degradation.high)}"
    words += f", limit {format_degradation(task, limit)}{more}"
    needed = limit
    while True:  # a wider limit asks for fewer rows, so it may bring slices in that were not judged before
        highs = [part.degradation.high for part in parts if has_enough_rows(part, needed, task)]
        if max(highs) <= needed:
            break
        needed = round_up(max(highs), 2)
    yield BudgetViolation(
        limit=name, allowed=limit, measured=worst.degradation.high, needed_limit=needed, message=words
    )


def _missed(name: str, limit: float, measured: float, words: str, digits: int = 2) -> BudgetViolation:
    return BudgetViolation(
        limit=name, allowed=limit, measured=measured, needed_limit=round_up(measured, digits), message=words
    )


def round_up(value: float, digits: int) -> float:
    """The least number of `digits` digits that is not below `value`, which is above 0."""
    exact = Decimal(str(value))  # as it is written: 0.025 is a little more in binary
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=ROUND_CEILING))


def _why_lost(
    one: Candidate, best: Candidate, ranked: Sequence[Candidate], baseline: Candidate, budget: Budget, task: Task
) -> str:
    """Why `one`, which is within the budget, is not the best."""
    others = [best, *(other for other in ranked if other.name not in (best.name, one.name))]
    winner = next(
        (other for other in others if dominates(pareto_costs(other, budget, task), pareto_costs(one, budget, task))),
        None,
    )
    if winner is not None:
        compared = "size, time or energy" if budget.objective.energy else "size or time"
        return f"dominated by {winner.name}: no better in {SCORE_NAMES[task]}, {compared}"
    times = objective_cost(one, baseline, budget) / objective_cost(best, baseline, budget)
    weights = budget.objective
    words = (("larger", weights.size), ("slower", weights.latency), ("of more energy", weights.energy))
    counting = [word for word, weight in words if weight]
    comparison = " and ".join(counting) + (" on the whole" if len(counting) > 1 else "")
    if times == 1:
        return f"within the budget, but no better by the objective than {best.name}"
    return f"within the budget, but {comparison} than {best.name} ({times:.2f}x)"


def _excess(missed: Sequence[BudgetViolation]) -> float:
    """By what share of a limit it is missed, at worst."""
    return max(one.excess for one in missed)


def no_candidate_error(decision: Decision, budget: Budget, task: Task, run_id: str) -> NoCandidate:
    """What each candidate missed, which came closest, and what would have to be relaxed for it."""
    nearest = min(decision.verdicts, key=lambda verdict: verdict.rank)
    # Once each: one line of the recipe may mend two.
    relaxed = " and ".join(dict.fromkeys(f"`{_as_recipe(missed, budget)}`" for missed in nearest.violations))
    # Times for other batches are taken when the choice is made, so the next ones are others.
    limits = {missed.limit for missed in nearest.violations}
    is_taken_anew = budget.batch_size not in TIMED_BATCH_SIZES and "latency_ms" in limits
    passes = "would have passed; it is timed anew, so leave some room" if is_taken_anew else "passes"
    return NoCandidate(
        "no candidate is within the budget:\n"
        + "\n".join(f"  {verdict.name}: {'; '.join(verdict.reasons)}" for verdict in decision.verdicts)
        + f"\nclosest is {nearest.name}, {_excess_in_words(nearest)}",
        required=_in_words(budget, task),
        where=f"the recipe's budget; all candidates are in MLflow's run {run_id}, with a picture",
        remedy=f"relax the budget to {relaxed}, and {nearest.name} {passes}; or add candidates under "
        "compression.candidates",
    )


def _excess_in_words(verdict: Verdict) -> str:
    parts = []
    for missed in verdict.violations:
        share = missed.excess
        told = f"{missed.measured / missed.allowed:.3g} times" if share >= 1 else f"{max(share, 0.001):.1%} over"
        spent = next((one for one, limit in _OBJECTIVES.items() if limit == missed.limit), None)
        parts.append(f"{told} {missed.limit if spent is None else f'the {spent} of fp32'}")
    return " and ".join(parts)


def _as_recipe(missed: BudgetViolation, budget: Budget) -> str:
    """The line of a recipe's budget under which this limit would hold."""
    needed = missed.needed_limit
    if missed.limit in _OBJECTIVES.values():
        return "objective: size"
    if missed.limit == "size_bytes":
        return f"size_bytes: {needed:_.0f}"
    if missed.limit == "latency_ms":
        limit = budget.latency_ms
        assert limit is not None
        if (limit.batch_size, limit.percentile) == (1, 99):
            return f"latency_ms: {needed:g}"
        return f"latency_ms: {{batch_size: {limit.batch_size}, percentile: {limit.percentile}, value: {needed:g}}}"
    unit = "%" if missed.limit.endswith("rise") else "pp"
    return f"{missed.limit}: {(Decimal(str(needed)) * 100).normalize():f}{unit}"


def _in_words(budget: Budget, task: Task) -> str:
    overall, of_slices = _limits_of_score(task)
    most = format_degradation(task, getattr(budget, overall))
    limits = [f"a {DEGRADATION_NAMES[task]} of {SCORE_NAMES[task]} of at most {most} (end of the 95% interval)"]
    for name, where in ((of_slices, "slice"), ("class_drop", "class")):
        if getattr(budget, name) is not None:
            limits.append(f"of at most {format_degradation(task, getattr(budget, name))} in each {where}")
    if budget.size_bytes is not None:
        limits.append(f"at most {budget.size_bytes:,} bytes")
    if budget.latency_ms is not None:
        limit = budget.latency_ms
        limits.append(f"at most {limit.value:g} ms at p{limit.percentile}{_of_batch(limit.batch_size)}")
    for spent, weight in (("time", budget.objective.latency), ("energy", budget.objective.energy)):
        if weight > 0:
            limits.append(f"no more {spent} than fp32")
    return ", ".join(limits)
