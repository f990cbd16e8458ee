"""The shift of class logits: decisions for a rare class, by the score of validation rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from bloomery.models.tree_ensembles.class_shift import choose_class_shift


def skewed_rows(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True log probabilities of two classes, and labels drawn from them; about a tenth of the rows are of class 1."""
    random = np.random.default_rng(seed)
    logit = random.normal(-2.8, 1.3, num_rows)
    share = 1 / (1 + np.exp(-logit))
    return np.log(np.stack([1 - share, share], axis=1)), (random.random(num_rows) < share).astype(np.int64)


@pytest.mark.parametrize(
    ("score", "function"),
    [("macro_f1", lambda y, d: f1_score(y, d, average="macro")), ("balanced_accuracy", balanced_accuracy_score)],
)
def test_decisions_of_other_rows_score_better(score, function) -> None:
    outputs, y = skewed_rows(600)
    shift = choose_class_shift(outputs, y, np.bincount(y), score)
    other, truth = skewed_rows(20_000, seed=1)
    before, after = function(truth, other.argmax(axis=1)), function(truth, (other + shift).argmax(axis=1))
    assert after > before + 0.05
    assert shift.max() == 0
    assert shift[0] < 0  # the frequent class


def test_balanced_accuracy_shifts_by_the_frequencies() -> None:
    """By Bayes' rule, the balanced decision divides each probability by the frequency of its class."""
    outputs, y = skewed_rows(20_000)
    shift = choose_class_shift(outputs, y, np.bincount(y), "balanced_accuracy")
    assert shift[0] - shift[1] == pytest.approx(np.log(np.bincount(y)[1] / np.bincount(y)[0]), abs=0.35)


def test_equal_frequencies_need_no_shift() -> None:
    y = np.arange(300) % 3
    outputs = np.random.default_rng(0).normal(size=(300, 3)) + np.where(np.arange(3) == y[:, None], 2.0, 0.0)
    assert choose_class_shift(outputs, y, np.bincount(y), "macro_f1") == pytest.approx(0)


def test_decisions_that_are_right_already_are_not_shifted() -> None:
    y = (np.arange(300) % 20 == 0).astype(np.int64)
    outputs = np.where(np.arange(2) == y[:, None], 3.0, 0.0)
    assert choose_class_shift(outputs, y, np.bincount(y), "macro_f1") == pytest.approx(0)


def test_a_class_without_training_rows_is_not_preferred() -> None:
    outputs, y = skewed_rows(600)
    three = np.concatenate([outputs, np.full((600, 1), -20.0)], axis=1)
    shift = choose_class_shift(three, y, np.array([550, 50, 0]), "macro_f1")
    assert shift[2] == shift[0] < shift[1]
    assert not ((three + shift).argmax(axis=1) == 2).any()


def test_validation_rows_without_the_rare_class_change_nothing_else() -> None:
    outputs, _ = skewed_rows(50)
    shift = choose_class_shift(outputs, np.zeros(50, np.int64), np.array([900, 100]), "macro_f1")
    assert np.isfinite(shift).all()
