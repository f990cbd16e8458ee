"""TabM: its members learn for themselves, and numbers are embedded between quantiles of the training rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.tabm import TabularEnsemble, build, compute_edges
from bloomery.models.networks.config import TabM
from bloomery.models.training.config import Loop
from bloomery.models.training.optimization.learner import create_learner

TABLE = Layout(kind="flat", shape=(4,), categories=((1, 3),))
SMALL = TabM(kind="tabm", members=3, width=8, embedding=4, dropout=0)


def make_network(num_outputs: int = 2) -> TabularEnsemble:
    torch.manual_seed(0)
    edges = ((-1.0, 0.0, 1.0), (), (-2.0, -1.0, 0.5, 3.0))
    return build(SMALL.model_copy(update={"edges": edges}), TABLE, num_outputs)


def make_rows(num_rows: int = 6) -> torch.Tensor:
    x = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(1))
    x[:, 1] = torch.arange(num_rows) % 3
    return x


def test_the_output_is_the_mean_of_the_members_predictions() -> None:
    x = make_rows()
    classifier, regressor = make_network(3).eval(), make_network(1).eval()
    with torch.no_grad():
        expected = classifier.member_outputs(x).softmax(dim=2).mean(dim=1)
        torch.testing.assert_close(classifier(x).softmax(dim=1), expected)
        torch.testing.assert_close(regressor(x), regressor.member_outputs(x).mean(dim=1))


def test_training_averages_the_losses_of_the_members() -> None:
    network, x, y = make_network(), make_rows(), torch.tensor([0, 1, 0, 1, 1, 0])
    learn = create_learner(network, Loop(epochs=1))
    loss = learn(x, lambda outputs, rows: F.cross_entropy(outputs, y[rows], reduction="sum"), 6)
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters()}
    network.zero_grad()
    outputs_BEK = network.member_outputs(x)
    expected = torch.stack([F.cross_entropy(outputs_BEK[:, e], y, reduction="sum") for e in range(3)]).mean()
    (expected / 6).backward()
    assert float(loss) == pytest.approx(float(expected))
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name])


def test_edges_are_quantiles_of_numbers_with_more_than_two_values() -> None:
    x = torch.zeros(1000, 4)
    x[:, 0] = torch.arange(1000.0)
    x[:, 1] = torch.arange(1000) % 3  # a category
    x[:, 2] = torch.arange(1000) % 2
    x[:, 3] = torch.tensor([0.0, 0.5, 2.0, 2.0]).repeat(250)
    quarters, binary, few = compute_edges(x, TABLE, 4)
    assert quarters == pytest.approx((0, 249.75, 499.5, 749.25, 999))
    assert binary == ()
    assert few == (0.0, 0.5, 2.0)


def test_a_spike_and_values_far_out_do_not_make_bins_too_narrow() -> None:
    x = torch.zeros(1000, 4)
    x[900:, 0] = torch.arange(100.0)
    x[:, 2] = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    x[0, 2] = 1e30
    x[:, 3] = 5.0
    spiked, outlying, constant = compute_edges(x, TABLE, 32)
    assert list(spiked) == sorted(set(spiked))
    assert constant == ()
    network = build(SMALL.model_copy(update={"edges": (spiked, outlying, constant)}), TABLE, 2).eval()
    with torch.no_grad():
        assert math.isfinite(float(network(x).abs().max()))


def test_a_table_of_categories_only_and_of_many_categories_is_read() -> None:
    layout = Layout(kind="flat", shape=(2,), categories=((0, 3), (1, 100)))
    network = build(SMALL.model_copy(update={"edges": ()}), layout, 2)
    assert network(torch.tensor([[0.0, 99.0], [2.0, 0.0]])).shape == (2, 2)


def test_the_odds_of_a_label_are_those_of_the_mean_probability() -> None:
    network = build(SMALL, TABLE, 3, "multilabel").eval()
    with torch.no_grad():
        members = 30 * network.member_outputs(make_rows())  # large logits must not overflow
        network.member_outputs = lambda x: members  # type: ignore[method-assign]
        torch.testing.assert_close(network(make_rows()).double().sigmoid(), members.double().sigmoid().mean(dim=1))
