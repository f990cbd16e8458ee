"""The score that a draft selects by: one that rare classes cannot hide behind."""

from types import SimpleNamespace

import pytest

from bloomery.tasks.scaffolding.planning.label_planning import LabelPlan
from bloomery.tasks.scaffolding.recipe_draft import _score


@pytest.mark.parametrize(
    ("counts", "score"),
    [
        ((700, 300), "accuracy"),
        ((50, 50, 20), "accuracy"),
        ((9_000, 400), "average_precision"),
        ((900, 40), "macro_f1"),  # a split might have no row of the rare class
        ((3_000, 200, 90), "macro_f1"),
    ],
)
def test_the_score_of_classes_follows_from_their_counts(counts, score):
    label = LabelPlan(SimpleNamespace(name="label"), "integer", classes=tuple(enumerate(counts)))
    name, reason = _score(label)
    assert name == score
    assert (f"{min(counts):,}" in reason) == (score != "accuracy")
    assert _score(label, is_shuffled=False)[0] in ("accuracy", "macro_f1")  # a split by time may lack the rare class


def test_a_quantity_has_an_error():
    assert _score(LabelPlan(SimpleNamespace(name="label"), "number", standard_deviation=2.0))[0] == "rmse"
