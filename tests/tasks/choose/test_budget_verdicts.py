"""Budget verdicts: which candidates satisfy a budget, which is best, and the reasons for the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import NoCandidate
from bloomery.data_contracts.records.output_units import ClassOutputScore
from bloomery.data_contracts.records.records import (
    Candidates,
    Interval,
)
from bloomery.models.compression.budget import Budget
from bloomery.models.evaluation.metrics import accuracy_drop
from bloomery.tasks.choose.budget_verdicts import (
    SubgroupDegradations,
    decide_candidate,
    find_violations,
    has_enough_rows,
    no_candidate_error,
    round_up,
)
from bloomery.tasks.evaluation.scoring import SliceDegradation
from tests.examples import examples
from tests.tasks.choose.candidates import CandidateFields, MakeCandidates, candidate, latency, verdict_on


@pytest.fixture
def make_regression(make_candidates: MakeCandidates) -> MakeCandidates:
    """Makes the record of a compress stage of a regression."""

    def make(*candidates: CandidateFields) -> Candidates:
        records = make_candidates(*candidates)
        dataset = records.trained.dataset.model_copy(update={"task": "regression", "classes": ()})
        return records.model_copy(update={"trained": records.trained.model_copy(update={"dataset": dataset})})

    return make


def test_the_smallest_candidate_that_passes_is_chosen(make_candidates: MakeCandidates) -> None:
    record = make_candidates(
        candidate("fp32", size=900), candidate("tiny", size=10, drop=0.5), candidate("int8", size=300)
    )
    best, verdicts = decide_candidate(record, Budget(accuracy_drop=0.01, objective="size"))
    assert best is not None
    assert best.name == "int8"
    assert [(verdict.passed, verdict.rank) for verdict in verdicts] == [(True, 2), (False, 3), (True, 1)]


@pytest.mark.parametrize(
    ("cost", "field", "more_reason", "perhaps_reason", "adjective"),
    [
        (
            "latency",
            "ratio",
            "slower than fp32: 1.20x its time",
            "not shown to be faster than fp32: 0.98x its time",
            "slower",
        ),
        (
            "energy",
            "energy",
            "takes more energy than fp32: 1.20x its energy",
            "not shown to take less energy than fp32: 0.98x its energy",
            "of more energy",
        ),
    ],
)
def test_a_candidate_that_may_cost_more_than_fp32_is_not_chosen(
    make_candidates: MakeCandidates, cost: str, field: str, more_reason: str, perhaps_reason: str, adjective: str
) -> None:
    record = make_candidates(
        candidate("fp32", energy=1.0),
        candidate("more", size=1, spread=0.05, **{"energy": 1.0, field: 1.2}),
        candidate("perhaps", size=1, spread=0.05, **{"energy": 1.0, field: 0.98}),
        candidate("least", size=1001, spread=0.05, **{"energy": 1.0, field: 0.5}),
    )
    best, verdicts = decide_candidate(record, Budget(objective=cost))
    assert best is not None
    assert best.name == "least"
    assert [verdict.reasons for verdict in verdicts[:3]] == [
        (f"within the budget, but {adjective} than least (2.00x)",),
        (f"{more_reason} (95% interval 1.14 to 1.26)",),
        (f"{perhaps_reason} (95% interval 0.93 to 1.03)",),
    ]


def test_a_cost_without_weight_rejects_no_candidate(make_candidates: MakeCandidates) -> None:
    record = make_candidates(candidate("fp32", energy=1.0), candidate("frugal", size=900, ratio=1.5, energy=0.6))
    for objective in ("size", "energy"):
        assert verdict_on("frugal", record, Budget(objective=objective)).passed
    budget = Budget(objective={"energy": 1, "latency": 1})
    assert verdict_on("frugal", record, budget).reasons == (
        "slower than fp32: 1.50x its time (95% interval 1.50 to 1.50)",
    )


def test_latency_counts_at_the_batch_size_of_the_budget(make_candidates: MakeCandidates) -> None:
    record = make_candidates(
        candidate("fp32"), candidate("one", ratio=0.5, batch_ratio=2), candidate("many", ratio=2, batch_ratio=0.5)
    )
    for batch, name in ((1, "one"), (32, "many")):
        best = decide_candidate(record, Budget(objective="latency", latency_ms={"batch_size": batch, "value": 9})).best
        assert best is not None
        assert best.name == name
    slow = Budget(latency_ms={"batch_size": 32, "percentile": 50, "value": 0.4}, objective="size")
    assert verdict_on("one", record, slow).reasons == ("p50 0.450 ms for 32 rows, limit 0.4 ms",)


def test_energy_counts_only_in_objectives_that_weigh_it(make_candidates: MakeCandidates) -> None:
    record = make_candidates(
        candidate("fp32", energy=1.0),
        candidate("small", size=200, ratio=0.6, energy=0.9),
        candidate("frugal", size=300, ratio=0.7, energy=0.3),
        candidate("neither", size=400, ratio=0.8, energy=0.95),
    )
    mixed = Budget(objective={"energy": 1, "size": 1})
    assert (decide_candidate(record, mixed).best or record.candidates[0]).name == "frugal"
    assert verdict_on("small", record, mixed).reasons == (
        "within the budget, but larger and of more energy overall than frugal (1.41x)",
    )
    assert verdict_on("neither", record, mixed).reasons == (
        "dominated by frugal: no better in accuracy, size, time or energy",
    )
    assert verdict_on("frugal", record, Budget(objective="size")).reasons == (
        "dominated by small: no better in accuracy, size or time",
    )


def test_a_limit_to_relax_is_named_once(make_candidates: MakeCandidates) -> None:
    budget = Budget(objective={"energy": 1, "latency": 1}, size_bytes=100)
    record = make_candidates(candidate("fp32", energy=1.0), candidate("int8", size=101, ratio=1.3, energy=1.3))
    error = refusal(record, budget)
    assert error.remedy.count("`objective: size`") <= 1
    assert "no more time than fp32, no more energy than fp32" in error.required
    assert "int8: size 0.1 kB, limit 0.1 kB; slower than fp32" in error.found


def test_a_mixed_objective_weighs_ratios_by_their_exponents(make_candidates: MakeCandidates) -> None:
    record = make_candidates(
        candidate("fp32", size=1000), candidate("small", size=100, ratio=0.9), candidate("fast", size=500, ratio=0.1)
    )
    names = {}
    for weight in (0.1, 0.5, 0.9):
        best = decide_candidate(record, Budget(objective={"latency": weight, "size": 1 - weight})).best
        assert best is not None
        names[weight] = best.name
    assert names == {0.1: "small", 0.5: "fast", 0.9: "fast"}  # 0.1 * 0.9 > 0.5 * 0.1


def test_each_rejected_candidate_has_a_reason(make_candidates: MakeCandidates) -> None:
    record = make_candidates(
        candidate("fp32", size=900),
        candidate("best", size=300, score=0.88, ratio=0.9),
        candidate("worse", size=400, score=0.87, ratio=0.9),
        candidate("better", size=600, score=0.89, ratio=0.8),
        candidate("twin", size=300, score=0.88, ratio=0.9),
    )
    verdicts = {verdict.name: verdict for verdict in decide_candidate(record, Budget(objective="size")).verdicts}
    assert verdicts["best"].reasons == ()
    assert verdicts["worse"].reasons == ("dominated by best: no better in accuracy, size or time",)
    assert verdicts["better"].reasons == ("within the budget, but larger than best (2.00x)",)
    assert verdicts["fp32"].reasons == ("within the budget, but larger than best (3.00x)",)
    assert verdicts["twin"].reasons == ("within the budget, but no better by the objective than best",)
    fast = verdict_on("best", record, Budget(objective="latency"))
    assert fast.reasons == ("within the budget, but slower than better (1.12x)",)


def test_a_limit_that_is_just_reached_is_satisfied(make_candidates: MakeCandidates) -> None:
    (exact,) = make_candidates(candidate("exact", size=2000, drop=0.01, p99=1.0)).candidates
    budget = Budget(accuracy_drop=0.01, size_bytes=2000, latency_ms=1.0)
    assert find_violations(exact, budget, "classification") == []


def test_a_regression_is_limited_by_the_rise_of_its_error(make_regression: MakeCandidates) -> None:
    record = make_regression(
        candidate("fp32", size=900), candidate("tiny", size=10, drop=0.2), candidate("int8", size=300, score=0.95)
    )
    best, verdicts = decide_candidate(record, Budget(error_rise=0.1, accuracy_drop=0.9, objective="size"))
    assert best is not None
    assert best.name == "int8"
    assert verdicts[1].reasons == ("rise up to 20.00%, limit 10.00%",)
    assert verdicts[0].reasons == ("within the budget, but larger than int8 (3.00x)",)  # its RMSE is lower


def test_no_label_may_demonstrably_lose_accuracy(make_candidates: MakeCandidates) -> None:
    def label(name: str, num_lost: int, num_gained: int) -> ClassOutputScore:
        accuracy = Interval(value=0.9, low=0.8, high=0.95)
        counts = {"num_compared": 200, "num_lost": num_lost, "num_gained": num_gained}
        rest = {"balanced_accuracy": 0.9, "log_loss": 0.3, "calibration_error": 0.02}
        return ClassOutputScore.model_validate({"name": name, "num_rows": 100, "accuracy": accuracy, **rest, **counts})

    small = make_candidates(candidate("fp32"), candidate("small")).candidates[1]
    even = small.model_copy(update={"class_outputs": (label("colour", 6, 4), label("size", 0, 0))})
    worse = even.model_copy(update={"class_outputs": (label("colour", 2, 14), label("size", 14, 2))})
    assert not find_violations(even, Budget(accuracy_drop=0.5), "multitask")
    (violation,) = find_violations(worse, Budget(accuracy_drop=0.5), "multitask")
    assert violation.message == "accuracy of size drops: of 200 rows 14 are lost and 2 gained"
    relaxed = Budget(accuracy_drop=0.5, class_drop=violation.needed_limit)
    assert not find_violations(worse, relaxed, "multitask")


def part(value: str, num_rows: int, high: float) -> SliceDegradation:
    return SliceDegradation("town", value, num_rows, Interval(value=0.0, low=-high, high=high))


def test_slices_and_classes_with_enough_rows_are_limited_too(make_candidates: MakeCandidates) -> None:
    record = make_candidates(candidate("fp32"), candidate("int8", size=10))
    budget = Budget(slice_drop=0.05, class_drop=0.05)
    fine = {"int8": SubgroupDegradations([part("A", 500, 0.04), part("few", 20, 0.9)], [part("x", 500, 0.05)])}
    assert verdict_on("int8", record, budget, fine).passed
    bad = {"int8": SubgroupDegradations([part("A", 500, 0.06), part("B", 500, 0.07)], [part("x", 500, 0.08)])}
    verdict = verdict_on("int8", record, budget, bad)
    assert verdict.reasons == (
        "drop in town=B up to 7.00 pp, limit 5.00 pp; exceeded in 1 more",
        "drop in town=x up to 8.00 pp, limit 5.00 pp",
    )
    assert [violation.limit for violation in verdict.violations] == ["slice_drop", "class_drop"]
    assert verdict_on("int8", record, Budget(), bad).passed  # an absent limit rejects nothing


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0.001, 0.9))
def test_a_slice_has_enough_rows_where_an_unchanged_candidate_would_pass(num_rows: int, limit: float) -> None:
    is_correct = np.ones(num_rows, dtype=bool)
    high = accuracy_drop(is_correct, is_correct).high
    if abs(high - limit) > 1e-9:
        assert has_enough_rows(part("A", num_rows, 0.0), limit, "classification") == (high <= limit)


def test_the_needed_limit_covers_slices_that_it_newly_includes(make_candidates: MakeCandidates) -> None:
    """At 5 points 60 rows are too few to count; at the limit that slice A needs they count, and need a higher one."""
    record = make_candidates(candidate("fp32", drop=0.9), candidate("int8", size=10))
    subgroups = {"int8": SubgroupDegradations([part("A", 500, 0.0712), part("B", 60, 0.1234)])}
    (violation,) = verdict_on("int8", record, Budget(slice_drop=0.05), subgroups).violations
    assert (violation.measured, violation.needed_limit) == (0.0712, 0.13)
    assert verdict_on("int8", record, Budget(slice_drop=violation.needed_limit), subgroups).passed


@settings(deadline=None)
@given(st.floats(1e-6, 1e9), st.integers(1, 4))
def test_round_up_gives_few_digits_and_is_never_below(value: float, digits: int) -> None:
    rounded = round_up(value, digits)
    assert value <= rounded <= value * (1 + 10 ** (1 - digits)) * (1 + 1e-9)
    assert float(f"{rounded:.{digits}g}") == rounded


def refusal(candidates: Candidates, budget: Budget) -> NoCandidate:
    decision = decide_candidate(candidates, budget)
    assert decision.best is None
    return no_candidate_error(decision, budget, candidates.trained.dataset.task, "r1")


def test_if_none_passes_the_error_lists_all_violations_and_the_closest_candidate(
    make_candidates: MakeCandidates,
) -> None:
    record = make_candidates(candidate("fp32", size=5000), candidate("int8", size=1000, drop=0.0123, p99=1.5))
    error = refusal(record, Budget(size_bytes=2000, latency_ms=1.0))
    assert "fp32: size 5.0 kB, limit 2.0 kB" in error.found
    assert "int8: drop up to 1.23 pp, limit 1.00 pp; p99 1.500 ms, limit 1 ms" in error.found
    assert error.found.endswith("closest is int8, 23.0% over accuracy_drop and 50.0% over latency_ms")
    assert "`accuracy_drop: 1.3pp` and `latency_ms: 1.5`, and int8 passes" in error.remedy
    assert "leave some room" not in error.remedy
    assert "MLflow run r1" in error.where
    assert error.exit_code == 4


def test_limits_to_relax_are_written_as_recipe_lines(
    make_candidates: MakeCandidates, make_regression: MakeCandidates
) -> None:
    error = refusal(make_regression(candidate("fp32", size=900, drop=0.025)), Budget(size_bytes=10))
    assert error.required.startswith("a rise of RMSE of at most 1.00% (upper 95% limit)")
    assert "`error_rise: 2.5%` and `size_bytes: 900`" in error.remedy
    limit = {"batch_size": 32, "percentile": 95, "value": 0.1}
    error = refusal(make_candidates(candidate("fp32")), Budget(latency_ms=limit))
    assert "`latency_ms: {batch_size: 32, percentile: 95, value: 0.45}`" in error.remedy
    assert "fp32 passes" in error.remedy
    fields = candidate("fp32")
    fields["latencies"] = (*fields["latencies"], latency(0.5, 1.0, batch=5))
    error = refusal(make_candidates(fields), Budget(latency_ms={"batch_size": 5, "value": 0.1}))
    assert (
        "value: 0.5}`, and fp32 would have passed; its latency is measured again, so leave some room;" in error.remedy
    )
    slower = candidate("int8", ratio=1.1, size=1)
    error = refusal(make_candidates(candidate("fp32", size=9000), slower), Budget(objective="latency", size_bytes=10))
    assert "closest is int8, 10.0% over the time of fp32" in error.found
    assert "`objective: size`" in error.remedy


LIMITS = st.fixed_dictionaries(
    {
        "accuracy_drop": st.floats(0.001, 0.2),
        "size_bytes": st.none() | st.integers(1, 2000),
        "latency_ms": st.none() | st.floats(0.01, 2),
        "objective": st.sampled_from(["size", "latency", {"size": 1, "latency": 2}]),
    }
)
CANDIDATES = st.lists(
    st.builds(
        candidate,
        st.uuids().map(str),
        size=st.integers(1, 2000),
        drop=st.floats(0, 0.3),
        p99=st.floats(0.01, 2),
        ratio=st.floats(0.1, 3),
        spread=st.floats(0, 0.2),
    ),
    min_size=1,
    max_size=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(50))
@given(LIMITS, CANDIDATES)
def test_the_choice_satisfies_every_limit_and_the_relaxed_limits_suffice(make_candidates, limits, candidates) -> None:  # type: ignore[no-untyped-def]
    record, budget = make_candidates(*candidates), Budget(**limits)
    best, verdicts = decide_candidate(record, budget)
    assert sorted(verdict.rank for verdict in verdicts) == list(range(1, len(candidates) + 1))
    if best is not None:
        assert not find_violations(best, budget, "classification")
        assert next(verdict.rank for verdict in verdicts if verdict.name == best.name) == 1
        assert all(verdict.reasons for verdict in verdicts if verdict.name != best.name)
        if budget.objective.latency > 0:
            assert best.latency.ratio.high <= 1
        return
    nearest = min(verdicts, key=lambda verdict: verdict.rank)
    for violation in nearest.violations:
        name, _, resource = violation.limit.partition(".")
        limits[name] = "size" if resource else violation.needed_limit
    if limits["size_bytes"] is not None:
        limits["size_bytes"] = int(limits["size_bytes"])
    relaxed = decide_candidate(record, Budget(**limits))
    assert next(verdict.passed for verdict in relaxed.verdicts if verdict.name == nearest.name)
