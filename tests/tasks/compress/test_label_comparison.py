"""Candidates for sets of labels are compared with fp32 by label and by whole sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bloomery.data_contracts.records.records import ClassRecall, Dataset
from bloomery.data_contracts.records.scores import Score
from bloomery.models.evaluation.metrics import proportion
from bloomery.models.training.data.batches import Examples
from bloomery.tasks.compress.baseline_comparison import (
    Split,
    SplitPredictions,
    bound_degradation,
    measure_disagreements,
    measure_recalls,
    prediction_changes,
)
from bloomery.tasks.evaluation.scoring import GroundTruth, class_table, degradation_by_class, measure_degradation

DATASET = Dataset.model_construct(task="multilabel", classes=("a", "b", "c"))
TRUTH = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]] * 25)


def make_examples() -> Examples:
    return Examples(torch.zeros(len(TRUTH), 1), torch.from_numpy(TRUTH).float(), np.arange(len(TRUTH)))


def make_truth() -> GroundTruth:
    return GroundTruth(np.arange(len(TRUTH)), TRUTH, np.arange(len(TRUTH)))


def predict(*changes: tuple[int, int]) -> np.ndarray:
    """Probabilities that are right but for the row and the label of each change."""
    shares = np.where(TRUTH > 0, 0.9, 0.1)
    for row, label in changes:
        shares[row, label] = 1 - shares[row, label]
    return shares


def test_rows_change_by_their_sets_and_labels_by_their_recall() -> None:
    # The candidate loses the label a of two rows, and adds c to the first of them.
    after_test = predict((0, 0), (0, 2), (1, 0))
    before: SplitPredictions = {"val": predict((4, 0)), "test": predict()}
    after: SplitPredictions = {"val": predict(), "test": after_test}
    changes = prediction_changes("multilabel", before, after)
    assert (changes["test"][:3].tolist(), int(changes["val"].sum())) == ([2, 1, 0], 1)
    counts = {item.split: (item.num_changed, item.num_rows) for item in measure_disagreements("multilabel", changes)}
    assert counts == {"val": (1, 100), "test": (2, 100)}
    samples: dict[Split, Examples] = {"val": make_examples(), "test": make_examples()}
    first, second = measure_recalls(DATASET, samples, before, after)  # no row has c
    assert first == ClassRecall(name="a", num_rows=50, num_right=48, num_compared=100, num_lost=2, num_gained=1)
    assert (second.num_right, second.num_lost, second.num_gained) == (50, 0, 0)
    truths: dict[Split, GroundTruth] = {"val": make_truth(), "test": make_truth()}
    bound = bound_degradation(Score(name="micro_f1"), truths, before, after)
    assert bound is not None
    assert 0 < bound < 0.1


def test_unchanged_sets_of_all_rows_bound_a_drop_of_subset_accuracy() -> None:
    before: SplitPredictions = {"train": np.tile(predict(), (40, 1)), "val": predict(), "test": predict()}
    truths: dict[Split, GroundTruth] = {"val": make_truth(), "test": make_truth()}
    score = Score(name="subset_accuracy")
    assert bound_degradation(score, truths, before, before) == pytest.approx(proportion(0, 4_200).high)
    changed: SplitPredictions = {**before, "test": predict((0, 0), (0, 1), (1, 2))}
    bound = bound_degradation(score, truths, before, changed)
    assert bound is not None
    assert proportion(2, 4_200).high < bound <= proportion(2, 200).high  # held-out rows change more


def test_tables_have_recall_of_labels_and_slices_have_whole_sets() -> None:
    truth = make_truth()
    shares = predict((0, 0), (1, 0), (2, 2))
    table = class_table(DATASET.classes, truth, shares)
    assert table["rows"] == [50, 50, 0]
    assert table["recall"] == [pytest.approx(0.96), 1.0, None]
    assert table["precision"] == [1.0, 1.0, 0.0]
    labels = (shares >= 0.5).astype(int)
    drop = measure_degradation("multilabel", truth, TRUTH, labels, slice(0, 10))
    assert drop.value == pytest.approx(0.3)
    parts = degradation_by_class(DATASET, truth, TRUTH, labels)
    assert [(str(part), part.num_rows, part.degradation.value) for part in parts] == [
        ("label=a", 50, pytest.approx(0.04)),
        ("label=b", 50, 0.0),
    ]
