"""The loss of several outputs: missing labels have neither an error nor a gradient."""

from __future__ import annotations

import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.distillation import squared_distance, target_distance
from bloomery.models.compression.quantization.sensitivity import output_divergence
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import TabM
from bloomery.models.training.config import Loop
from bloomery.models.training.optimization.loss import build_loss, is_multilabel, is_multioutput, is_regression
from bloomery.models.training.optimization.score_measure import build_measure

Y = torch.tensor([[0.5, float("nan")], [1.0, 2.0], [float("nan"), float("nan")]], dtype=torch.float64)


def test_labels_of_several_outputs_are_told_apart_from_sets_and_from_one_number():
    assert is_multioutput(Y)
    assert not is_multilabel(Y)
    assert not is_regression(Y)
    assert not is_multioutput(torch.zeros(3, 2))


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_missing_labels_have_no_error_and_no_gradient(loss: str):
    outputs = torch.tensor([[1.0, 5.0], [1.0, 1.5], [9.0, 9.0]], requires_grad=True)
    value = build_loss(Loop(epochs=1, loss=loss), Y)(outputs, Y)
    value.backward()
    factor = 1.0 if loss == "squared" else 0.5
    assert float(value.detach()) == pytest.approx(factor * (0.25 + 0.25) / 2)
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[Y.isnan()].eq(0).all()
    assert outputs.grad[0, 0] > 0 > outputs.grad[1, 1]


def test_validation_measures_the_mean_over_the_outputs():
    measure = build_measure(None, "multioutput", None)
    assert measure is not None
    outputs = torch.tensor([[1.5, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert measure(outputs, Y) == pytest.approx(((1 / 2) ** 0.5 + 1.0) / 2)


def test_a_student_learns_the_values_of_its_teacher():
    assert target_distance(Y) is squared_distance
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert float(squared_distance(student, teacher, 3.0)) == 2.5


def test_divergence_weighs_outputs_alike():
    exact, rounded = torch.randn(50, 2) * torch.tensor([1.0, 1e-3]), None
    rounded = exact + torch.tensor([0.0, 1e-3])
    divergence = output_divergence(exact.numpy(), rounded.numpy(), are_numbers=True)
    assert divergence == pytest.approx(0.5 / float(exact[:, 1].var(correction=0)) * 1e-6, rel=0.05)


def test_members_of_tabm_are_averaged():
    layout = Layout(kind="flat", shape=(3,))
    config = TabM(kind="tabm", members=4, width=8, edges=((), (), ()))
    network = build_network(Blueprint(config=config, layout=layout, task="multioutput", num_outputs=2)).eval()
    x = torch.randn(5, 3)
    torch.testing.assert_close(network(x), network.member_outputs(x).mean(dim=1))
