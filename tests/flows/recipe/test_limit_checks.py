"""Limits and scores of the wrong task are reported."""

from __future__ import annotations

import pytest

from bloomery.data_contracts.records.scores import Score
from bloomery.flows.recipe.limit_checks import find_misplaced_limits
from bloomery.models.compression.budget import Budget
from bloomery.models.evaluation.gates import Gates


@pytest.mark.parametrize(
    ("task", "budget", "gates", "names"),
    [
        ("classification", Budget(accuracy_drop=0.1), Gates(min_accuracy=0.9, champion_drop=0.1), []),
        ("regression", Budget(error_rise=0.1), Gates(max_error=3.0, champion_rise=0.1), []),
        ("regression", Budget(accuracy_drop=0.1), Gates(), ["budget.accuracy_drop", "budget.error_rise"]),
        ("classification", Budget(), Gates(max_error=3.0), ["gates.max_error", "gates.min_accuracy"]),
        ("regression", Budget(), Gates(champion_drop=0.01), ["gates.champion_drop", "gates.champion_rise"]),
        ("regression", Budget(class_drop=0.1), Gates(), ["budget.class_drop", "budget.slice_rise"]),
    ],
)
def test_limits_of_the_other_task_are_reported_with_their_replacement(task, budget, gates, names):
    sentences = list(find_misplaced_limits(task, budget, gates))
    assert len(sentences) == bool(names)
    assert all(name in sentences[0] for name in names)


def test_a_limit_in_slices_needs_slices():
    (message,) = find_misplaced_limits("classification", Budget(slice_drop=0.1), Gates())
    assert "training.slices" in message
    assert not list(find_misplaced_limits("classification", Budget(slice_drop=0.1), Gates(), ("town",)))


@pytest.mark.parametrize(
    ("name", "budget", "gates", "message"),
    [
        ("macro_f1", Budget(accuracy_drop=0.1), Gates(min_accuracy=0.5, min_score=0.6, champion_drop=0.1), None),
        ("log_loss", Budget(error_rise=0.1), Gates(max_error=0.6, champion_rise=0.1), None),
        ("r2", Budget(accuracy_drop=0.1), Gates(min_score=0.6, max_error=3.0), None),
        ("log_loss", Budget(accuracy_drop=0.1), Gates(), "budget.accuracy_drop is a limit of a score, not of log loss"),
        ("r2", Budget(), Gates(champion_rise=0.1), "gates.champion_rise is a limit of an error, not of R²"),
        ("mae", Budget(), Gates(min_score=0.1), "use gates.max_error"),
    ],
)
def test_limits_of_the_other_kind_of_score_are_reported(name, budget, gates, message):
    score = Score.model_validate({"name": name})
    sentences = list(find_misplaced_limits(score.facts.task, budget, gates, score=score))
    assert len(sentences) == (message is not None)
    assert message is None or message in sentences[0]


def test_a_score_of_the_other_task_is_reported_with_those_that_fit():
    (message,) = find_misplaced_limits("regression", Budget(), Gates(), score=Score(name="macro_f1"))
    assert "macro F1 is a score of a classification, not a regression: use one of rmse, mae, r2" in message


def test_limits_and_scores_of_sets_of_labels():
    score = Score(name="micro_f1")
    assert not list(find_misplaced_limits("multilabel", Budget(class_drop=0.1), Gates(min_score=0.5), score=score))
    (message,) = find_misplaced_limits("multilabel", Budget(), Gates(min_accuracy=0.9), score=score)
    assert "gates.min_accuracy is a limit of a classification, not a multilabel: use gates.min_score" in message
    (message,) = find_misplaced_limits("multilabel", Budget(), Gates(), score=Score(name="macro_f1"))
    assert "macro F1 is a score of a classification, not a multilabel: use one of micro_f1, label_macro_f1" in message
