"""Losses, scores and baselines of several labels with classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score

from bloomery.data_contracts.records.scores import MEAN_ACCURACY, Score
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.distillation import soft_target_loss, target_distance
from bloomery.models.evaluation.baseline_fits import fit_baselines
from bloomery.models.evaluation.baselines import BaselineRows, BaselineTask
from bloomery.models.evaluation.class_output_scores import label_score_interval, one_hot
from bloomery.models.evaluation.output_scores import output_score_interval
from bloomery.models.evaluation.score_intervals import degradation_interval, score_interval
from bloomery.models.evaluation.scores import compute_metrics
from bloomery.models.training.config import Loop
from bloomery.models.training.optimization.loss import (
    build_loss,
    class_weights,
    is_multilabel,
    is_multitask,
    loss_and_metric_sums,
)
from bloomery.models.training.optimization.score_measure import build_measure

Y = torch.tensor([[2, 0], [1, -100], [-100, -100]])
LOG_LOSS = Score(name="mean_log_loss")
BALANCED, EXACT = Score(name="mean_balanced_accuracy"), Score(name="exact_match")


def draw_classes(num_rows: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two labels with three and two classes, some missing, and probabilities."""
    random = np.random.default_rng(seed)
    truth = np.stack([random.integers(0, 3, num_rows), random.integers(0, 2, num_rows)], axis=1)
    logits = 3 * one_hot(truth) + noise * random.normal(size=(num_rows, 2, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return np.where(random.random((num_rows, 2)) < [0.0, 0.4], -100, truth), shares


def test_labels_are_told_apart_from_sets_and_missing_ones_have_no_loss_and_no_gradient():
    assert is_multitask(Y)
    assert not is_multilabel(Y)
    assert not is_multitask(Y[:, 0])
    outputs = torch.randn(3, 6, requires_grad=True)
    loss = build_loss(Loop(epochs=1), Y)(outputs, Y)
    expected = F.cross_entropy(outputs[:2, :3], Y[:2, 0], reduction="sum") + F.cross_entropy(outputs[:1, 3:], Y[:1, 1])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()))
    loss.backward()
    assert outputs.grad is not None
    assert outputs.grad[1, 3:].eq(0).all()
    assert outputs.grad[2].eq(0).all()


def test_a_row_is_right_where_all_its_known_labels_are():
    outputs = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 6])
    assert loss_and_metric_sums(outputs, Y)[1:].tolist() == [2.0, 3.0]
    measure = build_measure(None, "multitask", None)
    assert measure is not None
    assert measure(outputs, Y) == pytest.approx((0.5 + 1.0) / 2)


def test_distillation_compares_the_classes_of_each_label():
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    distance = target_distance(Y)(student, teacher, 2.0)
    parts = [soft_target_loss(student[:, part], teacher[:, part], 2.0) for part in (slice(0, 3), slice(3, 6))]
    assert float(distance) == pytest.approx(float(sum(parts)), rel=1e-5)


def test_the_classes_of_each_label_are_balanced_by_themselves():
    train_y = torch.tensor([[0, 0]] * 6 + [[0, 1]] * 2 + [[1, 1]] + [[2, -100]])
    outputs, y = torch.randn(3, 6), torch.tensor([[2, 0], [1, -100], [0, 1]])
    loss = build_loss(Loop(epochs=1, class_weights="balanced"), train_y)(outputs, y)
    weights = [class_weights(train_y[:, 0], 3), class_weights(train_y[:, 1], 3)]
    assert weights[1].tolist() == pytest.approx([9 / 12, 9 / 6, 0])
    parts = [F.cross_entropy(outputs[:, :3], y[:, 0], weight=weights[0], reduction="sum")]
    parts.append(F.cross_entropy(outputs[[0, 2], 3:], y[[0, 2], 1], weight=weights[1], reduction="sum"))
    assert float(loss) == pytest.approx(float(sum(parts)))


def test_scores_are_means_over_the_labels_of_rows_that_have_them():
    truth, shares = draw_classes(300, 2.0)
    metrics = compute_metrics("multitask", truth, shares)
    known = [truth[:, number] >= 0 for number in (0, 1)]
    accuracies = [(shares[rows, k].argmax(axis=1) == truth[rows, k]).mean() for k, rows in enumerate(known)]
    losses = [-np.log(shares[rows, k][np.arange(rows.sum()), truth[rows, k]]).mean() for k, rows in enumerate(known)]
    balanced = [balanced_accuracy_score(truth[rows, k], shares[rows, k].argmax(axis=1)) for k, rows in enumerate(known)]
    is_right = (shares.argmax(axis=2) == truth) | (truth < 0)
    assert metrics == pytest.approx(
        {
            "mean_accuracy": np.mean(accuracies),
            "mean_balanced_accuracy": np.mean(balanced),
            "exact_match": is_right.all(axis=1).mean(),
            "mean_log_loss": np.mean(losses),
        }
    )


def test_a_label_without_rows_in_a_slice_neither_raises_nor_lowers_its_score():
    truth, shares = draw_classes(60, 1.0)
    truth[:, 1] = -100
    expected = (shares[:, 0].argmax(axis=1) == truth[:, 0]).mean()
    assert label_score_interval("mean_accuracy", truth, shares, score_interval).value == pytest.approx(expected)
    numbers = np.stack([np.arange(5.0), np.full(5, np.nan)], axis=1)
    assert output_score_interval("mean_rmse", numbers, numbers + 2).value == pytest.approx(2)


@pytest.mark.parametrize("score", [MEAN_ACCURACY, BALANCED, EXACT, LOG_LOSS], ids=lambda score: score.name)
def test_intervals_show_a_worse_model_and_few_rows_prove_no_equality(score: Score):
    (truth, before), (_, after) = draw_classes(500, 1.5), draw_classes(500, 4.0)
    after = np.where(np.arange(500)[:, None, None] % 2, after, before)
    interval = score_interval(score, truth, before)
    assert interval.low < interval.value < interval.high
    rise, gain = degradation_interval(score, truth, before, after), degradation_interval(score, truth, after, before)
    assert 0 < rise.low < rise.value < rise.high
    assert gain.high < 0
    if score is not LOG_LOSS:
        for num_rows in (40, 500):
            equal = degradation_interval(score, truth[:num_rows], before[:num_rows], before[:num_rows])
            assert equal.value == 0
            assert equal.low < -1 / num_rows
            assert equal.high > 1 / num_rows


def test_a_perfect_model_is_not_proved_perfect_by_few_rows():
    truth, _ = draw_classes(100, 1.0)
    interval = score_interval(MEAN_ACCURACY, truth, one_hot(truth))
    assert interval.value == interval.high == 1
    assert 0.95 < interval.low < 0.98


def test_baselines_are_fitted_to_each_label():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 3)).astype(np.float32)
    y = np.stack([np.digitize(x[:, 0], [-0.5, 0.5]), x[:, 1] > 0], axis=1).astype(np.int64)
    y[::3, 1] = -100
    task = BaselineTask(
        score=MEAN_ACCURACY,
        layout=Layout(kind="flat", shape=(3,)),
        num_classes=0,
        train=BaselineRows(x[:300], y[:300]),
        test_x=x[300:],
        class_counts=(3, 2),
    )
    results = {fitted.name: fitted.predictions for fitted in fit_baselines(task)}
    assert list(results) == [
        "majority class of each label",
        "logistic regression for each label",
        "boosted trees for each label",
    ]
    accuracies = {}
    for name, shares in results.items():
        assert shares is not None
        np.testing.assert_allclose(shares.sum(axis=2), 1)
        accuracies[name] = compute_metrics("multitask", y[300:], shares)["mean_accuracy"]
    assert accuracies["majority class of each label"] < 0.65 < 0.85 < accuracies["boosted trees for each label"]
