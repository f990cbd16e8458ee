"""The default budget: candidates are smaller than fp32, no slower, and no worse in any class."""

from __future__ import annotations

import pytest

from bloomery.data_contracts.records.records import ClassRecall
from bloomery.models.compression.budget import Budget
from bloomery.tasks.choose.budget_verdicts import decide_candidate
from tests.tasks.choose.candidates import MakeCandidates, candidate, verdict_on


def test_by_default_a_candidate_is_smaller_and_no_slower_than_fp32(make_candidates: MakeCandidates) -> None:
    record = make_candidates(
        candidate("fp32"),
        candidate("small", size=100, ratio=1.02),
        candidate("fast", size=1100, ratio=0.5),
        candidate("both", size=900, ratio=0.9),
    )
    best, verdicts = decide_candidate(record, Budget())
    assert best is not None
    assert best.name == "both"
    assert [verdict.reasons for verdict in verdicts[:3]] == [
        ("dominated by both: no better in accuracy, size or time",),
        ("slower than fp32: 1.02x its time (95% interval 1.02 to 1.02)",),
        ("larger than fp32: 1.10x its size",),
    ]


def recall(name: str, num_rows: int, num_lost: int, num_gained: int = 0) -> ClassRecall:
    return ClassRecall(
        name=name,
        num_rows=num_rows,
        num_right=num_rows - num_lost,
        num_compared=num_rows,
        num_lost=num_lost,
        num_gained=num_gained,
    )


@pytest.mark.parametrize(
    ("recalls", "reason"),
    [
        ((recall("a", 900, 0), recall("b", 25, 25)), "recall of class b drops: of 25 rows 25 are lost and 0 gained"),
        (
            (recall("a", 900, 0), recall("b", 6, 6), recall("c", 7, 0)),
            "recall of the 2 classes of fewer than 20 rows drops: of 13 rows 6 are lost and 0 gained",
        ),
        ((recall("a", 900, 4, 3), recall("b", 25, 2)), None),
    ],
    ids=["a class is lost", "a rare class is lost", "no demonstrable loss"],
)
def test_a_candidate_that_loses_a_class_is_not_chosen(
    make_candidates: MakeCandidates, recalls: tuple[ClassRecall, ...], reason: str | None
) -> None:
    record = make_candidates(candidate("fp32"), candidate("pruned", size=10) | {"recalls": recalls})
    assert verdict_on("pruned", record, Budget()).reasons == (() if reason is None else (reason,))
    assert verdict_on("pruned", record, Budget(class_drop=1.0)).passed  # an explicit limit replaces the default


def test_unchanged_predictions_of_rows_without_a_label_bound_the_drop(make_candidates: MakeCandidates) -> None:
    """60 test rows alone would allow a drop of 6 points."""
    small = candidate("int8", size=10, drop=0.06)
    record = make_candidates(candidate("fp32"), small, small | {"name": "bounded", "bound_by_disagreement": 0.004})
    best, verdicts = decide_candidate(record, Budget())
    assert best is not None
    assert best.name == "bounded"
    assert verdicts[1].reasons == ("drop up to 6.00 pp, limit 1.00 pp",)
