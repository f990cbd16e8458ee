"""The table of candidates, and the sentence that says why the network as trained was chosen."""

from __future__ import annotations

from collections.abc import Callable

from bloomery.data_contracts.records.records import (
    BudgetViolation,
    Candidate,
    Choice,
    ClassRecall,
    Disagreement,
    Interval,
    Release,
    Verdict,
)
from bloomery.data_contracts.records.scores import ACCURACY, Score
from bloomery.tasks.evaluation.candidate_table import (
    candidate_columns,
    candidate_rows,
    describe_other_scores,
    explain_baseline,
    format_weakest_class,
)

RECALLS = tuple(
    ClassRecall(name=name, num_rows=rows, num_right=right, num_compared=2 * rows, num_lost=0, num_gained=0)
    for name, rows, right in (("often", 40, 36), ("a very long name", 8, 4), ("validation only", 0, 0))
)


def choose_of(release: Release, candidates: list[Candidate], chosen: str, violations: dict[str, list[str]]) -> Choice:
    verdicts = tuple(
        Verdict(
            name=candidate.name,
            rank=rank,
            passed=candidate.name not in violations,
            violations=tuple(
                BudgetViolation(limit=limit, allowed=1, measured=2, needed_limit=2, message=limit)
                for limit in violations.get(candidate.name, ())
            ),
            reasons=tuple(violations.get(candidate.name, ())),
        )
        for rank, candidate in enumerate(candidates, 1)
    )
    choice = release.bento.choice
    options = choice.candidates.model_copy(update={"candidates": tuple(candidates), "baseline": "fp32"})
    best = next(candidate for candidate in candidates if candidate.name == chosen)
    return choice.model_copy(update={"candidate": best, "verdicts": verdicts, "candidates": options})


def test_a_sentence_counts_why_no_compressed_candidate_was_chosen(
    release: Release, candidate_of: Callable[..., Candidate]
) -> None:
    names = ("fp32", "int8", "pruned", "tiny", "twin")
    candidates = [candidate_of(name, size) for size, name in enumerate(names, 1)]
    violations = {
        "int8": ["objective.latency"],
        "pruned": ["accuracy_drop", "objective.latency"],
        "tiny": ["class_drop"],
    }
    choice = choose_of(release, candidates, "fp32", violations)
    assert explain_baseline(choice) == (
        "fp32, the network as trained, stays: of 4 compressed candidates 2 not shown to be faster, "
        "1 not shown to keep the accuracy, 1 worse in a class, 1 no better by the objective."
    )
    assert explain_baseline(choose_of(release, candidates, "twin", violations)) is None
    assert explain_baseline(choose_of(release, candidates[:1], "fp32", {})) is None


def test_the_sentence_about_fp32_says_where_rows_are_too_few(
    release: Release, candidate_of: Callable[..., Candidate]
) -> None:
    def explain(num_rows: int, limit: str = "accuracy_drop", score: Score = ACCURACY) -> str:
        compared = (Disagreement(split="train", num_rows=num_rows, num_changed=0),)
        candidates = [candidate_of("fp32", 1, disagreements=()), candidate_of("pruned", 2, disagreements=compared)]
        choice = choose_of(release, candidates, "fp32", {"pruned": [limit]})
        verdicts = [
            verdict.model_copy(
                update={"violations": tuple(item.model_copy(update={"allowed": 0.01}) for item in verdict.violations)}
            )
            for verdict in choice.verdicts
        ]
        trained = choice.candidates.trained.model_copy(update={"stated_score": score})
        candidates_of_score = choice.candidates.model_copy(update={"trained": trained})
        update = {"verdicts": tuple(verdicts), "candidates": candidates_of_score}
        return explain_baseline(choice.model_copy(update=update)) or ""

    assert explain(178) == (
        "fp32, the network as trained, stays: of 1 compressed candidates 1 not shown to keep the accuracy; 178 rows "
        "cannot show a drop of at most 1.00 pp, which takes 381 rows without any change."
    )
    assert "rows" not in explain(381)
    assert "rows" not in explain(178, "objective.latency")
    assert "which takes 381 rows without any change" in explain(178, score=Score(name="subset_accuracy"))
    assert "rows" not in explain(178, score=Score(name="micro_f1"))


def test_the_table_shows_the_weakest_class_and_the_bound(
    release: Release, candidate_of: Callable[..., Candidate]
) -> None:
    degradation = Interval(value=0.0, low=-0.06, high=0.06)
    candidate = candidate_of("int8", 2, recalls=RECALLS, degradation=degradation, bound_by_disagreement=0.004)
    (row,) = candidate_rows(choose_of(release, [candidate], "int8", {}))
    assert (row["weakest class"], row["drop, at most"]) == ("50.0% a very long name", "0.40 pp")
    assert format_weakest_class(candidate, width=7) == "50.0% a very…"
    assert format_weakest_class(candidate_of("old", 2)) == ""  # of a version that recorded no recalls


def test_the_other_scores_of_the_chosen_candidate_are_listed(
    release: Release, candidate_of: Callable[..., Candidate]
) -> None:
    candidate = candidate_of("fp32", 1).model_copy(
        update={"metrics": {"accuracy": 0.9, "macro_f1": 0.8, "log_loss": 0.25}}
    )
    choice = choose_of(release, [candidate], "fp32", {})
    assert describe_other_scores(choice) == "fp32 also has macro F1 80.00%, log loss 0.250"
    columns = candidate_columns(choice.candidates, choice.verdicts, "fp32")
    assert columns["test_macro_f1"] == [0.8]
    without = choose_of(release, [candidate_of("fp32", 1)], "fp32", {})
    assert describe_other_scores(without) == ""
