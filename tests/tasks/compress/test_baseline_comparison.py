"""Upper limits of the degradation of a candidate by rows beside the test split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bloomery.data_contracts.records.output_units import ClassOutput
from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.records.scores import Score, ScoreName
from bloomery.models.evaluation.class_output_scores import one_hot
from bloomery.models.evaluation.score_intervals import degradation_interval
from bloomery.models.training.data.batches import Examples
from bloomery.tasks.compress.baseline_comparison import Split, bound_degradation, measure_output_changes
from bloomery.tasks.evaluation.output_scores import score_each_class_output
from bloomery.tasks.evaluation.scoring import GroundTruth

SIZES: dict[Split, int] = {"train": 2_000, "val": 200, "test": 200}


def draw_shares(seed: int, strength: float, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes, and probabilities of two classes that know them the better the higher `strength` is."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, num_rows)
    share = 1 / (1 + np.exp(-(strength * (truth - 0.5) + random.normal(size=num_rows))))
    return truth, np.stack([1 - share, share], axis=1)


def truth_of(labels: np.ndarray) -> GroundTruth:
    return GroundTruth(np.arange(len(labels)), labels, np.arange(len(labels)))


@pytest.mark.parametrize("name", ["average_precision", "auc", "macro_f1", "log_loss"])
def test_labels_of_training_rows_do_not_count(name: str) -> None:
    """fp32 knows its training rows by their labels, and so does the candidate, whatever it predicts of other rows."""
    score = Score(name=name)
    drawn = {split: draw_shares(seed, 3, size) for seed, (split, size) in enumerate(SIZES.items())}
    truths: dict[Split, GroundTruth] = {split: truth_of(drawn[split][0]) for split in ("test", "val")}
    before = {split: shares for split, (_, shares) in drawn.items()}
    after = {split: shares[::-1] if split == "test" else shares for split, shares in before.items()}
    after |= {"val": draw_shares(1, 2.5, 200)[1]}
    labels = np.concatenate([truths[split].truth for split in truths])
    rows = (np.concatenate([values[split] for split in truths]) for values in (before, after))
    expected = degradation_interval(score, labels, *rows).high
    assert bound_degradation(score, truths, before, after) == pytest.approx(expected)
    changed = after | {"train": after["train"][::-1]}
    assert bound_degradation(score, truths, before, changed) == pytest.approx(expected)


def test_validation_rows_lower_the_limit_of_a_regression() -> None:
    random = np.random.default_rng(0)
    labels: dict[Split, np.ndarray] = {split: random.normal(size=size) for split, size in SIZES.items()}
    truths: dict[Split, GroundTruth] = {split: truth_of(labels[split]) for split in ("test", "val")}
    before = {split: values + random.normal(size=len(values)) for split, values in labels.items()}
    after = {split: values + 0.05 * random.normal(size=len(values)) for split, values in before.items()}
    limits = [
        bound_degradation(Score(name="rmse"), {split: truths[split] for split in splits}, before, after)
        for splits in (("test",), ("test", "val"))
    ]
    assert limits[0] is not None
    assert limits[1] is not None
    assert limits[1] < limits[0] < 0.06  # the changes alone allow a rise by 5%
    exact = bound_degradation(Score(name="rmse"), truths, before, before)
    assert exact == pytest.approx(0, abs=1e-9)


def test_few_changes_of_many_rows_bound_a_drop_of_accuracy() -> None:
    drawn = {split: draw_shares(seed, 3, size) for seed, (split, size) in enumerate(SIZES.items())}
    truths: dict[Split, GroundTruth] = {split: truth_of(drawn[split][0]) for split in ("test", "val")}
    before = {split: shares for split, (_, shares) in drawn.items()}
    after = before | {"test": np.concatenate([before["test"][:1, ::-1], before["test"][1:]])}
    limit = bound_degradation(Score(name="accuracy"), truths, before, after)
    assert limit is not None
    assert 0 < limit < 0.004
    # Without training rows and unlabelled rows, 400 rows are left.
    few = [{split: values[split] for split in ("val", "test")} for values in (before, after)]
    held_out_limit = bound_degradation(Score(name="accuracy"), truths, *few)
    assert held_out_limit is not None
    assert 0.01 < held_out_limit < 0.02


def draw_labels(num_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two labels with three classes, and probabilities that know them."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, (num_rows, 2))
    return truth, one_hot(truth) * 0.8 + 0.1 * random.random((num_rows, 2, 3))


def test_few_changed_rows_bound_a_drop_of_several_labels_unless_some_have_few_rows() -> None:
    drawn = {split: draw_labels(size, seed) for seed, (split, size) in enumerate(SIZES.items())}
    before = {split: shares for split, (_, shares) in drawn.items()}
    changed = np.concatenate([before["test"][:1, :, ::-1], before["test"][1:]])
    after = before | {"test": changed}

    def bound(name: ScoreName, is_missing: np.ndarray) -> float:
        truth = np.where(is_missing, -100, drawn["test"][0])
        limit = bound_degradation(Score(name=name), {"test": truth_of(truth)}, before, after)
        assert limit is not None
        return limit

    complete, sparse = np.zeros((200, 2), bool), np.stack([np.zeros(200), np.arange(200) >= 20], axis=1) > 0
    assert 0 < bound("mean_accuracy", complete) < 0.005
    assert 0 < bound("exact_match", sparse) < 0.005
    assert bound("mean_accuracy", sparse) > 0.05  # of 20 rows with the second label, one has changed


def test_the_paired_change_of_each_label_is_that_of_rows_that_have_it() -> None:
    outputs = tuple(ClassOutput(name=name, classes=("a", "b", "c")) for name in ("colour", "size"))
    dataset = Dataset.model_construct(task="multitask", class_outputs=outputs)
    truth, shares = draw_labels(60)
    truth[40:, 1] = -100
    after = shares.copy()
    after[:5, 0] = np.roll(after[:5, 0], 1, axis=1)
    after[38:45, 1] = np.roll(after[38:45, 1], 1, axis=1)
    rows = Examples(torch.zeros(60, 1), torch.from_numpy(truth), np.arange(60))
    samples: dict[Split, Examples] = {"val": rows, "test": rows}
    scores = score_each_class_output(outputs, truth_of(truth), after)
    predictions: list[dict[Split, np.ndarray]] = [{"val": values, "test": values} for values in (shares, after)]
    changes = measure_output_changes(scores, dataset, samples, *predictions)
    assert [(score.num_rows, score.num_compared, score.num_lost, score.num_gained) for score in changes] == [
        (60, 120, 10, 0),
        (40, 80, 4, 0),
    ]
    assert changes[0].accuracy.value == pytest.approx(55 / 60)
