"""The training loop."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from bloomery.data_contracts.errors import TrainingDiverged
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network, write_network
from bloomery.models.networks.config import Cnn
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import EpochResult, TrainingHooks, evaluate, predict, train

BLUEPRINT = Blueprint(
    config=Cnn(kind="cnn", channels=(4, 8), hidden=16, dropout=0.1),
    layout=Layout(kind="image", shape=(1, 8, 8)),
    num_outputs=10,
)
LOOP = Loop(epochs=3, batch_size=32)


def first(examples: Examples, num_rows: int) -> Examples:
    return Examples(*(column[:num_rows] for column in examples))


def with_value(examples: Examples, value: float) -> Examples:
    """The same rows with another value of one pixel."""
    x = examples.x.clone()
    x[0, 0, 3, 3] = value
    return examples._replace(x=x)


def trained_digest(folder: Path, splits, *, seed: int, order_seed: int) -> str:
    set_deterministic(seed, num_threads=1)
    network = build_network(BLUEPRINT)
    train(network, TrainingData(first(splits.train, 200), first(splits.val, 50), seed=order_seed), LOOP)
    return write_network(network, BLUEPRINT, folder / "weights", folder / "blueprint")


def test_a_network_can_overfit_eight_rows(splits):
    set_deterministic(seed=0, num_threads=1)
    rows = first(splits.train, 8)
    network = build_network(
        BLUEPRINT.model_copy(update={"config": Cnn(kind="cnn", channels=(8, 16), hidden=32, dropout=0)})
    )
    epochs = train(network, TrainingData(rows, rows), Loop(epochs=60, batch_size=8, learning_rate=1e-2))
    assert evaluate(network, rows)[1] == 1
    assert epochs[-1].train_loss < 0.1 < epochs[0].train_loss


def test_a_network_generalises_to_new_rows(trained, splits):
    assert evaluate(trained.network, splits.test)[1] > 0.85


def test_equal_seeds_give_equal_bits(tmp_path: Path, splits):
    digests = {trained_digest(tmp_path, splits, seed=3, order_seed=3) for _ in range(2)}
    assert len(digests) == 1


def test_other_seeds_give_other_bits(tmp_path: Path, splits):
    digests = {
        trained_digest(tmp_path, splits, seed=seed, order_seed=order) for seed, order in ((3, 3), (3, 4), (4, 3))
    }
    assert len(digests) == 3


def test_the_network_ends_with_the_weights_of_its_best_epoch(splits):
    set_deterministic(seed=0, num_threads=1)
    network = build_network(BLUEPRINT)
    # The validation labels contradict the training labels, so the first epochs are the best.
    contrary = splits.val._replace(y=(splits.val.y + 1) % 10)
    epochs = train(network, TrainingData(splits.train, contrary), Loop(epochs=6, learning_rate=1e-2))
    losses = [epoch.val_loss for epoch in epochs]
    assert losses.index(min(losses)) < len(losses) - 1
    assert evaluate(network, contrary)[0] == min(losses)
    assert not network.training


def test_every_epoch_is_reported_in_order(splits):
    reported: list[EpochResult] = []
    epochs = train(
        build_network(BLUEPRINT),
        TrainingData(first(splits.train, 64), first(splits.val, 20)),
        LOOP,
        hooks=TrainingHooks(on_epoch=reported.append),
    )
    assert reported == epochs
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert all(0 <= epoch.val_score <= 1 and epoch.train_loss > 0 for epoch in epochs)
    assert epochs[-1].learning_rate < max(epoch.learning_rate for epoch in epochs) <= LOOP.learning_rate


def test_every_epoch_has_a_different_order(splits):
    network, inputs = build_network(BLUEPRINT), []
    network.register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0]) if module.training else None
    )
    train(network, TrainingData(first(splits.train, 64), first(splits.val, 20)), Loop(epochs=2, batch_size=64))
    first_epoch, second_epoch = inputs
    assert not torch.equal(first_epoch, second_epoch)
    assert torch.equal(first_epoch.flatten(1).sum(1).sort().values, second_epoch.flatten(1).sum(1).sort().values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_on_values_that_are_not_finite_diverges(splits, value):
    with pytest.raises(TrainingDiverged, match="the loss of epoch 1 is nan"):
        train(build_network(BLUEPRINT), TrainingData(with_value(first(splits.train, 64), value), splits.val), LOOP)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_not_finite_diverges(splits, value):
    with pytest.raises(TrainingDiverged):
        train(build_network(BLUEPRINT), TrainingData(first(splits.train, 64), with_value(splits.val, value)), LOOP)


def test_too_large_a_learning_rate_diverges(splits):
    with pytest.raises(TrainingDiverged, match="lower `learning_rate`"):
        train(build_network(BLUEPRINT), TrainingData(splits.train, splits.val), Loop(epochs=3, learning_rate=1e30))


@pytest.mark.parametrize("num_rows", [0, 1])
def test_fewer_than_two_training_rows_are_refused(splits, num_rows):
    with pytest.raises(TrainingDiverged, match="fewer than two rows"):
        train(build_network(BLUEPRINT), TrainingData(first(splits.train, num_rows), splits.val), LOOP)


@pytest.mark.parametrize("num_rows", [2, 3, 32, 33, 34, 65])
@pytest.mark.parametrize("num_epochs", [1, 4])
def test_any_number_of_rows_and_epochs_fits_the_schedule(splits, num_rows, num_epochs):
    loop = Loop(epochs=num_epochs, batch_size=32)
    epochs = train(build_network(BLUEPRINT), TrainingData(first(splits.train, num_rows), first(splits.val, 1)), loop)
    assert len(epochs) == num_epochs


def test_predictions_do_not_depend_on_batches(trained, splits):
    outputs_BK = predict(trained.network, splits.test.x)
    torch.testing.assert_close(
        predict(trained.network, splits.test.x, num_batches=50), outputs_BK, atol=1e-5, rtol=1e-5
    )
    assert outputs_BK.shape == (len(splits.test.y), 10)
    assert not outputs_BK.requires_grad


def test_evaluation_changes_nothing(trained, splits):
    network = copy.deepcopy(trained.network).train()
    before = copy.deepcopy(network.state_dict())
    result, repeated = (evaluate(network, splits.test) for _ in range(2))
    assert result == repeated
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not network.training


def test_evaluation_is_mean_cross_entropy_and_accuracy():
    logits_BK = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    examples = Examples(logits_BK, torch.tensor([0, 1, 1]), torch.arange(3).numpy())
    loss, share = evaluate(torch.nn.Identity(), examples)
    expected = -logits_BK.log_softmax(1)[torch.arange(3), examples.y].mean().item()
    assert (loss, share) == pytest.approx((expected, 2 / 3))


def test_wide_rows_are_evaluated_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    network, sizes = torch.nn.Linear(3, 2), []
    network.register_forward_hook(lambda _, arguments, __: sizes.append(len(arguments[0])))
    x = torch.randn(10, 3)
    expected = predict(network, x)
    monkeypatch.setattr("bloomery.models.training.loop._EVALUATION_VALUES", 12)
    torch.testing.assert_close(predict(network, x), expected)
    assert sizes == [10, 4, 3, 3]
