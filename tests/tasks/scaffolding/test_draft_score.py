"""The score that a draft selects by: one that rare classes cannot hide behind."""

from types import SimpleNamespace

import pytest

from bloomery.tasks.scaffolding.planning.label_planning import LabelPlan
from bloomery.tasks.scaffolding.recipe_draft import _macro_f1_margin, _score


@pytest.mark.parametrize(
    ("counts", "score"),
    [
        ((700, 300), "accuracy"),
        ((50, 50, 20), "accuracy"),
        ((2_096, 285), "macro_f1"),  # 12% of the rows
        ((9_000, 400), "macro_f1"),
        ((900, 40), "macro_f1"),
        ((3_000, 200, 90), "macro_f1"),
    ],
)
def test_the_score_of_classes_follows_from_their_counts(counts, score):
    label = LabelPlan(SimpleNamespace(name="label"), "integer", classes=tuple(enumerate(counts)))
    name, reason = _score(label)
    assert name == score
    assert (f"{min(counts):,}" in reason) == (score != "accuracy")


def test_a_quantity_has_an_error():
    assert _score(LabelPlan(SimpleNamespace(name="label"), "number", standard_deviation=2.0))[0] == "rmse"


@pytest.mark.parametrize(
    ("test_rows", "low", "high"),  # the limits that most pairs of equally good models have in a simulation
    [((100, 100), 0.03, 0.05), ((57, 419), 0.03, 0.06), ((40, 60, 5_000), 0.04, 0.07), ((8, 400), 0.13, 0.26)],
)
def test_a_rare_class_has_a_margin_that_an_equally_good_version_can_keep(test_rows, low, high):
    assert low <= _macro_f1_margin(test_rows) <= high


def test_the_margin_depends_on_the_rare_class_and_not_on_all_rows():
    assert _macro_f1_margin([10, 100]) == pytest.approx(_macro_f1_margin([10, 100_000]), rel=0.02)
    assert _macro_f1_margin([1_000, 1_000]) < 0.01
