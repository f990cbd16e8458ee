"""Decides which candidates satisfy a budget, which of them is best, and why each of the others was not chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Literal, NamedTuple

from bloomery.data_contracts.errors import NoCandidate
from bloomery.data_contracts.records.records import BudgetViolation, Candidate, Candidates, Interval, Verdict
from bloomery.data_contracts.records.score_format import (
    DEGRADATION_NAMES,
    as_score,
    class_noun,
    degradation_name,
    format_degradation,
)
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task, predicts_numbers, predicts_row_classes
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.pareto_front import dominates
from bloomery.models.evaluation.metrics import Z_95, drop_of_counts
from bloomery.models.profiling.latency import TIMED_BATCH_SIZES
from bloomery.tasks.evaluation.scoring import SliceDegradation

Resource = Literal["time", "energy"]
_OBJECTIVES = {"time": "objective.latency", "energy": "objective.energy", "size": "objective.size"}
_MIN_CLASS_ROWS = 20  # of a class whose recall is compared by itself; rarer classes are compared together
_MIN_ROWS = 30  # of a slice of a regression: a bootstrap of fewer rows says little


class SubgroupDegradations(NamedTuple):
    """The degradation of a candidate in each slice, and among the rows of each class."""

    slices: Sequence[SliceDegradation] = ()
    classes: Sequence[SliceDegradation] = ()


_NO_SUBGROUPS = SubgroupDegradations()


class Decision(NamedTuple):
    """The best candidate, None if none satisfies the budget, and a verdict for each candidate, in their order."""

    best: Candidate | None
    verdicts: tuple[Verdict, ...]


def decide_candidate(
    candidates: Candidates, budget: Budget, subgroups: Mapping[str, SubgroupDegradations] | None = None
) -> Decision:
    """Picks the candidate with the least cost that satisfies all limits.

    `subgroups` holds, by candidate name, the degradations that the budget limits by slice and by class.
    """
    score = candidates.trained.score
    baseline = find_baseline(candidates)
    violations = {
        candidate.name: [
            *find_violations(candidate, budget, score, (subgroups or {}).get(candidate.name, _NO_SUBGROUPS)),
            *_find_size_violations(candidate, baseline, budget),
        ]
        for candidate in candidates.candidates
    }
    passing = [candidate for candidate in candidates.candidates if not violations[candidate.name]]
    ranked = sorted(
        passing,
        key=lambda passed: (objective_cost(passed, baseline, budget), passed.size_bytes, passed.latency.ratio.value),
    )
    best = ranked[0] if ranked else None
    failing = [candidate for candidate in candidates.candidates if violations[candidate.name]]
    failing.sort(key=lambda candidate: _largest_excess(violations[candidate.name]))
    ranks = {candidate.name: rank for rank, candidate in enumerate([*ranked, *failing], 1)}
    verdicts = []
    for candidate in candidates.candidates:
        reasons = [violation.message for violation in violations[candidate.name]]
        if not reasons and best is not None and candidate.name != best.name:
            reasons = [_explain_loss(candidate, ranked, baseline, budget, score)]
        verdicts.append(
            Verdict(
                name=candidate.name,
                rank=ranks[candidate.name],
                passed=not violations[candidate.name],
                violations=tuple(violations[candidate.name]),
                reasons=tuple(reasons),
            )
        )
    return Decision(best, tuple(verdicts))


def find_baseline(candidates: Candidates) -> Candidate:
    """The candidate that is the network as trained."""
    return next(candidate for candidate in candidates.candidates if candidate.name == candidates.baseline)


def objective_cost(candidate: Candidate, baseline: Candidate, budget: Budget) -> float:
    """The geometric mean of the ratios to `baseline`, weighted by the objective; less is better."""
    weights = budget.objective
    weighted = weights.size * math.log(candidate.size_bytes / baseline.size_bytes)
    weighted += sum(weight * math.log(ratio.value) for _, weight, ratio in _resource_ratios(candidate, budget))
    return math.exp(weighted / (weights.size + weights.latency + weights.energy))


def _resource_ratios(candidate: Candidate, budget: Budget) -> Iterator[tuple[Resource, float, Interval]]:
    """Each resource of the objective, its weight, and its ratio to fp32 at the budget's batch size."""
    weights = budget.objective
    if weights.latency:
        yield "time", weights.latency, candidate.latency_at(budget.batch_size).ratio
    if weights.energy:
        assert candidate.energy is not None
        yield "energy", weights.energy, candidate.energy.ratio


def pareto_costs(candidate: Candidate, budget: Budget, score: Score | Task) -> tuple[float, ...]:
    """The costs by which candidates are compared, lower is better: score, size, time, and energy if it counts."""
    value = candidate.score.value
    time = candidate.latency_at(budget.batch_size).ratio.value
    energy = [ratio.value for resource, _, ratio in _resource_ratios(candidate, budget) if resource == "energy"]
    return (value if as_score(score).is_error else -value), candidate.size_bytes, time, *energy


def find_violations(
    candidate: Candidate, budget: Budget, score: Score | Task, subgroups: SubgroupDegradations = _NO_SUBGROUPS
) -> list[BudgetViolation]:
    """Each limit of `budget` that `candidate` exceeds."""
    score = as_score(score)
    task = score.facts.task
    overall, by_slice = _degradation_limits(score)
    violations = [
        *_find_degradation_violations(candidate, overall, getattr(budget, overall), score),
        *_find_subgroup_violations(subgroups.slices, by_slice, getattr(budget, by_slice), task),
        *_find_subgroup_violations(subgroups.classes, "class_drop", budget.class_drop, task),
        *(_find_recall_violations(candidate, class_noun(task)) if budget.class_drop is None else ()),
        *(_find_output_violations(candidate) if budget.class_drop is None else ()),
    ]
    if budget.size_bytes is not None and candidate.size_bytes > budget.size_bytes:
        message = f"size {candidate.size_bytes / 1000:.1f} kB, limit {budget.size_bytes / 1000:.1f} kB"
        violations.append(_violation("size_bytes", budget.size_bytes, candidate.size_bytes, message, digits=3))
    if budget.vector_bytes is not None and (candidate.vector_bytes or 0) > budget.vector_bytes:
        message = f"vectors of {candidate.vector_bytes} bytes, limit {budget.vector_bytes} bytes"
        violations.append(
            _violation("vector_bytes", budget.vector_bytes, candidate.vector_bytes or 0, message, digits=3)
        )
    if budget.latency_ms is not None:
        limit, percentile = budget.latency_ms.value, budget.latency_ms.percentile
        latency_ms = candidate.latency_at(budget.batch_size).percentile_ms(percentile)
        if latency_ms > limit:
            message = f"p{percentile} {latency_ms:.3f} ms{_format_batch(budget.batch_size)}, limit {limit:g} ms"
            violations.append(_violation("latency_ms", limit, latency_ms, message, digits=3))
    # An objective of time or energy must not choose a candidate that needs more of it than fp32. The upper limit of
    # the interval counts: like an equal score, a lower cost has to be shown.
    for resource, _, ratio in _resource_ratios(candidate, budget):
        if ratio.high > 1:
            message = _describe_excess_cost(resource, ratio, budget)
            violations.append(_violation(_OBJECTIVES[resource], 1.0, ratio.high, message))
    return violations


def _find_size_violations(candidate: Candidate, baseline: Candidate, budget: Budget) -> Iterator[BudgetViolation]:
    """An objective of size and another resource must not choose a candidate that is larger than fp32."""
    weighs_others = any(True for _ in _resource_ratios(candidate, budget))
    if budget.objective.size and weighs_others and candidate.size_bytes > baseline.size_bytes:
        ratio = candidate.size_bytes / baseline.size_bytes
        yield _violation(_OBJECTIVES["size"], 1.0, ratio, f"larger than fp32: {ratio:.2f}x its size")


def _find_recall_violations(candidate: Candidate, noun: str) -> Iterator[BudgetViolation]:
    """At most one violation: the class, or the rare classes together, with the largest demonstrable drop of recall."""
    rare = [recall for recall in candidate.recalls if recall.num_compared < _MIN_CLASS_ROWS]
    groups = [(f"{noun} {recall.name}", [recall]) for recall in candidate.recalls if recall not in rare]
    if rare:
        nouns = {"class": "classes", "label": "labels"}[noun]
        groups.append((f"the {len(rare)} {nouns} of fewer than {_MIN_CLASS_ROWS} rows", rare))
    worst: BudgetViolation | None = None
    for name, recalls in groups:
        num_rows, num_lost, num_gained = (
            sum(getattr(recall, field) for recall in recalls) for field in ("num_compared", "num_lost", "num_gained")
        )
        drop = drop_of_counts(num_lost, num_gained, num_rows)
        if drop.low > 0 and (worst is None or drop.value > worst.measured):
            worst = _drop_violation(f"recall of {name}", drop, num_rows, num_lost, num_gained)
    if worst is not None:
        yield worst


def _find_output_violations(candidate: Candidate) -> Iterator[BudgetViolation]:
    """At most one violation: of several labels with classes, that with the largest demonstrable drop of accuracy."""
    drops = [
        (drop_of_counts(output.num_lost, output.num_gained, output.num_compared), output)
        for output in candidate.class_outputs
        if output.num_compared
    ]
    demonstrable = [(drop, output) for drop, output in drops if drop.low > 0]
    if demonstrable:
        drop, output = max(demonstrable, key=lambda pair: pair[0].low)
        counts = (output.num_compared, output.num_lost, output.num_gained)
        yield _drop_violation(f"accuracy of {output.name}", drop, *counts)


def _drop_violation(name: str, drop: Interval, num_rows: int, num_lost: int, num_gained: int) -> BudgetViolation:
    """A demonstrable drop, where the budget has no `class_drop`, which would have to be this large."""
    return BudgetViolation(
        limit="class_drop",
        allowed=0.0,
        measured=drop.value,
        needed_limit=round_up(drop.high, 2),
        message=f"{name} drops: of {num_rows} rows {num_lost} are lost and {num_gained} gained",
    )


def _find_degradation_violations(
    candidate: Candidate, name: str, limit: float, score: Score
) -> Iterator[BudgetViolation]:
    high = candidate.max_degradation
    if high > limit:
        message = (
            f"{degradation_name(score)} up to {format_degradation(score, high)}, "
            f"limit {format_degradation(score, limit)}"
        )
        yield _violation(name, limit, high, message)


def _describe_excess_cost(resource: Resource, ratio: Interval, budget: Budget) -> str:
    worse, better = {"time": ("slower", "be faster"), "energy": ("takes more energy", "take less energy")}[resource]
    comparison = f"{worse} than fp32" if ratio.low > 1 else f"not shown to {better} than fp32"
    interval = f"95% interval {ratio.low:.2f} to {ratio.high:.2f}"
    return f"{comparison}: {ratio.value:.2f}x its {resource}{_format_batch(budget.batch_size)} ({interval})"


def _format_batch(batch_size: int) -> str:
    return "" if batch_size == 1 else f" for {batch_size} rows"


def _degradation_limits(score: Score) -> tuple[str, str]:
    """The names of two limits of the budget: of the score over all rows, and of accuracy or RMSE in each slice."""
    overall = "error_rise" if score.is_error else "accuracy_drop"
    return overall, "slice_rise" if predicts_numbers(score.facts.task) else "slice_drop"


def has_enough_rows(subgroup: SliceDegradation, limit: float, task: Task) -> bool:
    """Whether a candidate that predicts like fp32 in every row of `subgroup` would satisfy `limit`.

    By Tango's interval, n unchanged rows still allow a drop of z² / (n + z²).
    """
    if predicts_numbers(task):
        return subgroup.num_rows >= _MIN_ROWS
    return Z_95**2 / (subgroup.num_rows + Z_95**2) <= limit


def _find_subgroup_violations(
    subgroups: Sequence[SliceDegradation], name: str, limit: float | None, task: Task
) -> Iterator[BudgetViolation]:
    """At most one violation, that of the worst subgroup."""
    if limit is None:
        return
    exceeding = [
        subgroup
        for subgroup in subgroups
        if has_enough_rows(subgroup, limit, task) and subgroup.degradation.high > limit
    ]
    if not exceeding:
        return
    worst = max(exceeding, key=lambda subgroup: subgroup.degradation.high)
    remark = f"; exceeded in {len(exceeding) - 1} more" if len(exceeding) > 1 else ""
    message = f"{DEGRADATION_NAMES[task]} in {worst} up to {format_degradation(task, worst.degradation.high)}"
    message += f", limit {format_degradation(task, limit)}{remark}"
    needed = limit
    while True:  # a wider limit requires fewer rows, so it may include subgroups that were too small before
        highs = [subgroup.degradation.high for subgroup in subgroups if has_enough_rows(subgroup, needed, task)]
        if max(highs) <= needed:
            break
        needed = round_up(max(highs), 2)
    yield BudgetViolation(
        limit=name, allowed=limit, measured=worst.degradation.high, needed_limit=needed, message=message
    )


def _violation(name: str, limit: float, value: float, message: str, digits: int = 2) -> BudgetViolation:
    needed = round_up(value, digits)
    return BudgetViolation(limit=name, allowed=limit, measured=value, needed_limit=needed, message=message)


def round_up(value: float, digits: int) -> float:
    """The smallest number of `digits` digits that is not below `value`, which is above 0."""
    decimal = Decimal(str(value))  # the shortest decimal: 0.025 is slightly larger in binary
    return float(decimal.quantize(Decimal(1).scaleb(decimal.adjusted() - digits + 1), rounding=ROUND_CEILING))


def _explain_loss(
    candidate: Candidate, ranked: Sequence[Candidate], baseline: Candidate, budget: Budget, score: Score
) -> str:
    """Why `candidate`, which satisfies the budget, is not `ranked[0]`."""
    best = ranked[0]
    rivals = [rival for rival in ranked if rival.name != candidate.name]
    costs = pareto_costs(candidate, budget, score)
    winner = next((rival for rival in rivals if dominates(pareto_costs(rival, budget, score), costs)), None)
    if winner is not None:
        compared = "size, time or energy" if budget.objective.energy else "size or time"
        return f"dominated by {winner.name}: no better in {score.title}, {compared}"
    factor = objective_cost(candidate, baseline, budget) / objective_cost(best, baseline, budget)
    weights = budget.objective
    adjectives = (("larger", weights.size), ("slower", weights.latency), ("of more energy", weights.energy))
    weighted = [adjective for adjective, weight in adjectives if weight]
    comparison = " and ".join(weighted) + (" overall" if len(weighted) > 1 else "")
    if factor == 1:
        return f"within the budget, but no better by the objective than {best.name}"
    return f"within the budget, but {comparison} than {best.name} ({factor:.2f}x)"


def _largest_excess(violations: Sequence[BudgetViolation]) -> float:
    """The largest share of a limit by which it is exceeded."""
    return max(violation.excess for violation in violations)


def no_candidate_error(decision: Decision, budget: Budget, score: Score | Task, run_id: str) -> NoCandidate:
    """The error that lists the violations of each candidate, the closest candidate, and the limits to relax for it."""
    closest = min(decision.verdicts, key=lambda verdict: verdict.rank)
    # Each line once: two violations may need the same line of the recipe.
    relaxed = " and ".join(
        dict.fromkeys(f"`{_format_recipe_line(violation, budget)}`" for violation in closest.violations)
    )
    # Latencies of other batch sizes are measured by this stage, so the next run measures other values.
    limits = {violation.limit for violation in closest.violations}
    is_measured_again = budget.batch_size not in TIMED_BATCH_SIZES and "latency_ms" in limits
    passes = "would have passed; its latency is measured again, so leave some room" if is_measured_again else "passes"
    return NoCandidate(
        "no candidate is within the budget:\n"
        + "\n".join(f"  {verdict.name}: {'; '.join(verdict.reasons)}" for verdict in decision.verdicts)
        + f"\nclosest is {closest.name}, {_describe_excess(closest)}",
        required=_describe_budget(budget, as_score(score)),
        where=f"the recipe's budget; MLflow run {run_id} has all candidates and their plot",
        remedy=f"relax the budget to {relaxed}, and {closest.name} {passes}; or add candidates under "
        "compression.candidates",
    )


def _describe_excess(verdict: Verdict) -> str:
    parts = []
    for violation in verdict.violations:
        share = violation.excess
        if math.isinf(share):
            parts.append(violation.message)
            continue
        factor = (
            f"{violation.measured / violation.allowed:.3g} times" if share >= 1 else f"{max(share, 0.001):.1%} over"
        )
        resource = next((resource for resource, limit in _OBJECTIVES.items() if limit == violation.limit), None)
        parts.append(f"{factor} {violation.limit if resource is None else f'the {resource} of fp32'}")
    return " and ".join(parts)


def _format_recipe_line(violation: BudgetViolation, budget: Budget) -> str:
    """The line of the recipe's budget that would remove the violation."""
    needed = violation.needed_limit
    if violation.limit in _OBJECTIVES.values():
        return "objective: latency" if violation.limit == _OBJECTIVES["size"] else "objective: size"
    if violation.limit in ("size_bytes", "vector_bytes"):
        return f"{violation.limit}: {needed:_.0f}"
    if violation.limit == "latency_ms":
        limit = budget.latency_ms
        assert limit is not None
        if (limit.batch_size, limit.percentile) == (1, 99):
            return f"latency_ms: {needed:g}"
        return f"latency_ms: {{batch_size: {limit.batch_size}, percentile: {limit.percentile}, value: {needed:g}}}"
    unit = "%" if violation.limit.endswith("rise") else "pp"
    return f"{violation.limit}: {(Decimal(str(needed)) * 100).normalize():f}{unit}"


def _describe_budget(budget: Budget, score: Score) -> str:
    task = score.facts.task
    overall, by_slice = _degradation_limits(score)
    highest = format_degradation(score, getattr(budget, overall))
    limits = [f"a {degradation_name(score)} of {score.title} of at most {highest} (upper 95% limit)"]
    for name, subgroup in ((by_slice, "slice"), ("class_drop", class_noun(task))):
        if getattr(budget, name) is not None:
            limits.append(f"of at most {format_degradation(task, getattr(budget, name))} in each {subgroup}")
    if budget.size_bytes is not None:
        limits.append(f"at most {budget.size_bytes:,} bytes")
    if budget.vector_bytes is not None:
        limits.append(f"vectors of at most {budget.vector_bytes:,} bytes")
    if budget.latency_ms is not None:
        limit = budget.latency_ms
        limits.append(f"at most {limit.value:g} ms at p{limit.percentile}{_format_batch(limit.batch_size)}")
    if budget.class_drop is None and predicts_row_classes(task):
        of_labels = " and of accuracy in any label" if task == "multitask" else ""
        limits.append(f"no demonstrable drop of recall in any {class_noun(task)}{of_labels}")
    weights = budget.objective
    for resource, weight in (("time", weights.latency), ("energy", weights.energy)):
        if weight > 0:
            limits.append(f"no more {resource} than fp32")
    if weights.size and weights.latency + weights.energy:
        limits.append("no larger than fp32")
    return ", ".join(limits)
