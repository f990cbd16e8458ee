"""The components of the training loop: losses, schedules, moving averages, and augmentation."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bloomery.data_contracts.records.scores import Score
from bloomery.models.features.labels import StandardUnits
from bloomery.models.profiling.flops import count_flops_per_row
from bloomery.models.training.config import Augment, Loop
from bloomery.models.training.data.augmentation import augment_batch, batch_generator, mixup
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import EpochResult, best_epoch, evaluate, predict, train
from bloomery.models.training.optimization.loss import build_loss, class_weights, loss_and_metric_sums, loss_and_score
from bloomery.models.training.optimization.optimizer import EMA, build_optimizer, build_schedule, clip_gradients
from bloomery.models.training.optimization.score_measure import build_measure
from tests.examples import examples

CLASSES = torch.tensor([0, 0, 0, 1, 2, 2])
LOGITS = torch.tensor([[2.0, 0, 1], [0, 3, 0], [1, 1, 1], [0, 2, 0], [0, 0, 1], [4, 0, 0]])


def regression_rows(num_rows: int = 200) -> Examples:
    """Rows of a regression whose label is a weighted sum of the row's values."""
    x = torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(0))
    return Examples(x, x @ torch.tensor([1.0, -2.0, 0.5]), np.arange(num_rows))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def scheduled_rates(**options: Any) -> list[float]:
    loop = Loop(epochs=1, learning_rate=1.0, **options)
    optimizer = build_optimizer(linear(), loop)
    schedule = build_schedule(optimizer, loop, 20)
    learning_rates = []
    for _ in range(20):
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return learning_rates


def test_the_classification_loss_is_torchs_summed_cross_entropy():
    loop = Loop(epochs=1, label_smoothing=0.1)
    expected = F.cross_entropy(LOGITS, CLASSES, label_smoothing=0.1) * len(CLASSES)
    assert build_loss(loop, CLASSES)(LOGITS, CLASSES).item() == pytest.approx(expected.item(), rel=1e-6)


def test_balanced_class_weights_are_equal_per_class_with_mean_one():
    weights = class_weights(CLASSES, 4)
    assert (weights * torch.bincount(CLASSES, minlength=4)).tolist() == pytest.approx([2, 2, 2, 0])
    assert weights[CLASSES].mean().item() == pytest.approx(1)
    loss = build_loss(Loop(epochs=1, class_weights="balanced"), CLASSES)(LOGITS, CLASSES)
    expected = (F.cross_entropy(LOGITS, CLASSES, reduction="none") * weights[CLASSES]).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(class_weights(torch.cat([CLASSES, torch.tensor([-100, -100])]), 4), weights)  # without a label


@pytest.mark.parametrize(("loss", "measure"), [("squared", F.mse_loss), ("huber", F.huber_loss)])
def test_the_regression_loss_is_the_configured_one(loss, measure):
    outputs, y = torch.tensor([[0.0], [3.0]]), torch.tensor([0.5, 0.0])
    value = build_loss(Loop(epochs=1, loss=loss), y)(outputs, y)
    assert value.item() == pytest.approx(2 * measure(outputs[:, 0], y).item())


def test_sums_of_batches_give_the_score_of_all_rows():
    expected = loss_and_score(loss_and_metric_sums(LOGITS, CLASSES), CLASSES)
    parts = loss_and_metric_sums(LOGITS[:2], CLASSES[:2]) + loss_and_metric_sums(LOGITS[2:], CLASSES[2:])
    assert loss_and_score(parts, CLASSES) == pytest.approx(expected)
    rows = regression_rows()
    loss, rmse = evaluate(linear(), rows)
    assert rmse == pytest.approx(math.sqrt(loss))


def test_biases_and_norms_have_no_decay_and_frozen_parameters_are_excluded():
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    network[2].requires_grad_(False)
    groups = build_optimizer(network, Loop(epochs=1, weight_decay=0.3), {"0.weight": 0.5}).param_groups
    settings_of = {
        id(parameter): (group["weight_decay"], group["lr"]) for group in groups for parameter in group["params"]
    }
    assert settings_of[id(network[0].weight)] == (0.3, 0.5 * 3e-3)
    assert settings_of[id(network[0].bias)] == settings_of[id(network[1].weight)] == (0.0, 3e-3)
    assert len(settings_of) == 4


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "linear", "constant"])
def test_learning_rates_rise_to_the_configured_one_and_fall_by_schedule(schedule):
    learning_rates = scheduled_rates(schedule=schedule, warmup=0.25)
    assert max(learning_rates) == pytest.approx(1.0, abs=0.05)
    top = learning_rates.index(max(learning_rates))
    assert 4 <= top <= 6
    assert learning_rates[:top] == sorted(learning_rates[:top])
    assert learning_rates[top:] == sorted(learning_rates[top:], reverse=True)
    assert (learning_rates[-1] < 0.2) == (schedule != "constant")


def test_without_warm_up_the_first_rate_is_the_configured_one():
    assert scheduled_rates(schedule="cosine", warmup=0)[0] == scheduled_rates(schedule="constant")[0] == 1.0


@settings(deadline=None, max_examples=examples(30))
@given(scale=st.floats(1e-3, 1e3), max_norm=st.floats(0.1, 10))
def test_clipped_gradients_have_at_most_the_configured_norm(scale, max_norm):
    network = linear()
    (network(torch.ones(2, 3)).sum() * scale).backward()
    before = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    clip_gradients(network, max_norm)
    after = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert after.norm() <= max_norm * 1.001
    torch.testing.assert_close(after, before * min(1.0, max_norm / before.norm().item()), rtol=1e-3, atol=1e-6)


def test_the_moving_average_follows_the_weights_without_changing_them():
    network = linear()
    mean, initial_weight = EMA(network, 0.9), network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    mean.update(network)
    with mean.applied_to(network):
        assert torch.all(network.weight > initial_weight)
        assert torch.all(network.weight < initial_weight + 1)
    torch.testing.assert_close(network.weight.detach(), initial_weight + 1)


def test_the_moving_average_is_evaluated_and_returned():
    rows, network = regression_rows(), linear()
    epochs = train(network, TrainingData(rows, rows), Loop(epochs=2, batch_size=20, ema=0.99))
    assert evaluate(network, rows) == (epochs[-1].val_loss, epochs[-1].val_score)
    without_average = linear()
    train(without_average, TrainingData(rows, rows), Loop(epochs=2, batch_size=20))
    assert not torch.equal(without_average.weight, network.weight)


def test_accumulated_batches_equal_one_large_batch():
    rows, (small, large) = regression_rows(64), (linear(), linear())
    train(small, TrainingData(rows, rows), Loop(epochs=3, batch_size=8, accumulate=4, learning_rate=0.1))
    train(large, TrainingData(rows, rows), Loop(epochs=3, batch_size=32, learning_rate=0.1))
    torch.testing.assert_close(small.weight, large.weight, rtol=1e-4, atol=1e-5)


def test_training_stops_after_patience_epochs_without_improvement():
    rows = regression_rows()
    contrary = rows._replace(y=-rows.y)
    epochs = train(
        linear(), TrainingData(rows, contrary), Loop(epochs=20, learning_rate=0.1, patience=2, batch_size=20)
    )
    best = min(epochs, key=lambda epoch: epoch.val_loss)
    assert len(epochs) == best.number + 2 < 20


def test_the_best_epoch_is_selected_by_the_configured_metric():
    history = [
        EpochResult(1, 1.0, 0.5, 0.7, 0.1),
        EpochResult(2, 1.0, 0.4, 0.8, 0.1),
        EpochResult(3, 1.0, 0.6, 0.9, 0.1),
    ]
    by_loss, by_score, by_none = (Loop(epochs=3, best_by=metric) for metric in ("loss", "score", "last"))
    assert [best_epoch(history, loop, is_error=False).number for loop in (by_loss, by_score, by_none)] == [2, 3, 3]
    assert [best_epoch(history, loop, is_error=True).number for loop in (by_loss, by_score, by_none)] == [2, 1, 3]
    equal_epochs = [epoch._replace(val_loss=0.4, val_score=0.8) for epoch in history]
    assert [best_epoch(equal_epochs, loop, is_error=False).number for loop in (by_loss, by_score)] == [3, 3]


@pytest.mark.parametrize("best_by", ["loss", "score"])
def test_a_classifier_ends_with_the_weights_of_its_best_epoch(best_by):
    # A sixth of the validation labels is wrong, so the loss rises again when the network becomes more confident.
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    rows = Examples(x, y, np.arange(300))
    val_rows = rows._replace(y=torch.where(torch.arange(300) % 6 == 0, 1 - y, y))
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
    loop = Loop(epochs=25, batch_size=20, learning_rate=0.03, best_by=best_by)
    epochs = train(network, TrainingData(rows, val_rows), loop)
    best = best_epoch(epochs, loop, is_error=False)
    assert evaluate(network, val_rows) == (best.val_loss, best.val_score)
    # Another epoch is best by the other metric; otherwise this test would show nothing.
    other_loop = loop.model_copy(update={"best_by": "score" if best_by == "loss" else "loss"})
    assert best_epoch(epochs, other_loop, is_error=False).number != best.number


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"loss": "huber"}, {"clip_norm": 0.5}])
def test_a_regression_is_learnt(options):
    rows, network = regression_rows(), linear()
    train(network, TrainingData(rows, rows), Loop(epochs=30, learning_rate=0.1, batch_size=20, **options))
    assert evaluate(network, rows)[1] < 0.1


@pytest.mark.parametrize(
    ("has_amx", "is_allowed", "same_as"), [(True, True, "bf16"), (True, False, "fp32"), (False, True, "fp32")]
)
def test_auto_precision_follows_the_cpu_and_its_allowed_instructions(has_amx, is_allowed, same_as, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx})
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_allowed)
    rows, outputs = regression_rows(), {}
    for precision in ("auto", "bf16", "fp32"):
        network = linear()
        train(network, TrainingData(rows, rows), Loop(epochs=3, batch_size=20, precision=precision))
        outputs[precision] = predict(network, rows.x)
    assert torch.equal(outputs["auto"], outputs[same_as])
    assert not torch.equal(outputs["bf16"], outputs["fp32"])


def images(num_rows: int = 12) -> torch.Tensor:
    return torch.rand(num_rows, 2, 9, 7, generator=torch.Generator().manual_seed(1)) + 1


@pytest.mark.parametrize(
    "augment",
    [Augment(flip=True), Augment(shift=2), Augment(rotate=20), Augment(erase=0.5), Augment(mask=0.4)],
    ids=["flip", "shift", "rotate", "erase", "mask"],
)
def test_augmentation_depends_only_on_the_generator_and_keeps_the_shape(augment):
    x = images()
    before = x.clone()
    augmented, repeated, of_other_batch = (
        augment_batch(x, augment, batch_generator(1, 2, batch)) for batch in (3, 3, 4)
    )
    assert torch.equal(x, before)
    assert torch.equal(augmented, repeated)
    assert not torch.equal(augmented, of_other_batch)
    assert augmented.shape == x.shape
    assert not torch.equal(augmented, x)


def test_flipped_images_are_the_images_or_their_mirror_images():
    x = images(40)
    changed = augment_batch(x, Augment(flip=True), batch_generator(0, 1, 0))
    is_same, is_mirror = ((changed == expected).flatten(1).all(1) for expected in (x, x.flip(3)))
    assert torch.all(is_same | is_mirror)
    assert 8 < int(is_mirror.sum()) < 32


def test_shifted_images_keep_their_middle():
    x = images(40)
    changed = augment_batch(x, Augment(shift=1), batch_generator(0, 1, 0))
    moves = [x[:, :, 1 + down : 8 + down, 1 + right : 6 + right] for down in (-1, 0, 1) for right in (-1, 0, 1)]
    hits = torch.stack([(changed[:, :, 1:8, 1:6] == shifted).flatten(1).all(1) for shifted in moves])
    assert torch.all(hits.sum(0) == 1)
    assert torch.all(hits.any(1))


def test_a_rotation_keeps_a_circle_round_in_a_wide_image():
    down, right = torch.arange(25.0)[:, None] - 12, torch.arange(41.0)[None] - 20
    blob = torch.exp(-(down**2 + right**2) / 20).expand(6, 1, 25, 41)
    changed = augment_batch(blob, Augment(rotate=180), batch_generator(0, 1, 0))
    assert (changed - blob).abs().max() < 0.03


def test_erased_images_lose_one_rectangle():
    x = images(60)
    changed = augment_batch(x, Augment(erase=0.5), batch_generator(0, 1, 0))
    erased = (changed == 0).float()
    assert torch.equal(torch.where(changed == 0, x, changed), x)
    shares = erased.flatten(1).mean(1)
    assert 15 < int((shares > 0).sum()) < 45
    assert shares.max() < 0.4
    for hole in erased[shares > 0][:, 0]:
        assert torch.equal(hole, hole.amax(1, keepdim=True) * hole.amax(0, keepdim=True))


@settings(deadline=None, max_examples=examples(40))
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8), share=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_remaining_tokens_keep_their_order_and_padding_stays_at_the_end(lengths, share, seed):
    x = torch.zeros(len(lengths), 9)
    for row, length in zip(x, lengths, strict=True):
        row[:length] = torch.arange(1, length + 1)
    for row, length in zip(
        augment_batch(x, Augment(drop_tokens=share), batch_generator(seed, 1, 1)), lengths, strict=True
    ):
        tokens = row[row > 0]
        assert torch.all(row[len(tokens) :] == 0)
        assert tokens.tolist() == sorted(set(tokens.tolist()))
        assert len(tokens) <= length
        assert length == 0 or tokens[0] == 1


def test_mixup_rows_have_the_reported_share():
    x, y = torch.eye(6), torch.arange(6)
    mixed = mixup(x, y, 0.4, batch_generator(0, 1, 1))
    assert 0.5 <= mixed.share <= 1
    torch.testing.assert_close(mixed.x, x * mixed.share + torch.eye(6)[mixed.other_y] * (1 - mixed.share))


def test_flops_count_forward_and_backward_without_changing_the_network():
    network = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 4, bias=False))
    before = copy.deepcopy(network.state_dict())
    flops = count_flops_per_row(network, torch.rand(2, 8))
    # Two for each weight forward, four backward, without the gradient of the input.
    assert flops == 2 * (3 * (8 * 16 + 16 * 4) - 8 * 16)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_best_epoch_is_selected_by_the_score_of_the_recipe():
    rows = regression_rows()
    measure = build_measure(Score(name="mape"), "regression", StandardUnits(mean=50.0, deviation=4.0))
    data = TrainingData(rows, rows, measure=measure)
    network = linear()
    epochs = train(network, data, Loop(epochs=3, learning_rate=0.1, batch_size=20, best_by="score"))
    with torch.no_grad():
        predictions, truth = (50 + 4 * values.double().numpy() for values in (network(rows.x)[:, 0], rows.y))
    best = min(epoch.val_score for epoch in epochs)
    assert best == pytest.approx(np.mean(np.abs(predictions - truth) / truth), rel=1e-6)
    assert evaluate(network, rows, measure=measure)[1] == pytest.approx(best)


def test_the_default_score_is_computed_by_the_loop_itself():
    assert build_measure(None, "classification", None) is None
    assert build_measure(Score(name="accuracy"), "classification", None) is None
    measure = build_measure(Score(name="log_loss"), "classification", None)
    assert measure is not None
    assert measure(LOGITS, CLASSES) == pytest.approx(F.cross_entropy(LOGITS, CLASSES).item())


def test_a_quantile_loss_as_the_score_trains_the_quantile():
    rows = regression_rows(2_000)
    noise = torch.randn(2_000, generator=torch.Generator().manual_seed(1))
    rows = rows._replace(y=rows.y + noise)
    measure = build_measure(Score(name="quantile_loss", quantile=0.9), "regression", StandardUnits(mean=0, deviation=1))
    network = linear()
    train(network, TrainingData(rows, rows, measure=measure), Loop(epochs=10, learning_rate=0.05, best_by="score"))
    below = (rows.y < predict(network, rows.x)[:, 0]).float().mean().item()
    assert below == pytest.approx(0.9, abs=0.02)
