"""Vectors of texts are learnt from pairs, and evaluated by the ranks of positives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.distillation import target_distance
from bloomery.models.compression.pruning.importance import compute_gradients
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Transformer
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import evaluate, train
from bloomery.models.training.optimization.contrastive_loss import contrastive_loss, join_pairs, similarity_loss
from bloomery.models.training.optimization.loss import is_multilabel, is_regression

NETWORK = Blueprint(
    config=Transformer(kind="transformer", width=16, num_layers=1, num_heads=2, dropout=0.0),
    layout=Layout(kind="tokens", shape=(4,), num_tokens=40),
    task="embedding",
    num_outputs=16,
)


def make_pairs(num_rows: int, seed: int = 0) -> Examples:
    """Queries with a subject of 18 and noise; the positive has the subject's other name."""
    random = np.random.default_rng(seed)
    subjects = random.integers(1, 19, num_rows)
    x = np.stack([subjects, random.integers(36, 40, num_rows), random.integers(36, 40, num_rows), 0 * subjects], axis=1)
    y = np.stack([subjects + 18, 0 * subjects, 0 * subjects, 0 * subjects], axis=1)
    return Examples(torch.from_numpy(x).float(), torch.from_numpy(y).int(), np.arange(num_rows))


def test_labels_that_are_texts_are_neither_sets_nor_numbers():
    y = make_pairs(3).y
    assert not is_multilabel(y)
    assert not is_regression(y)


def test_the_loss_is_the_cross_entropy_of_the_own_positive():
    torch.manual_seed(0)
    vectors, y = torch.randn(6, 5), torch.tensor([[1], [2], [3]], dtype=torch.int32)
    queries, positives = F.normalize(vectors[:3], dim=1), F.normalize(vectors[3:], dim=1)
    expected = F.cross_entropy(queries @ positives.T / 0.1, torch.arange(3), reduction="sum")
    torch.testing.assert_close(contrastive_loss(vectors, y, Loop(epochs=1, temperature=0.1)), expected)


def test_an_equal_positive_of_another_row_is_no_negative():
    torch.manual_seed(0)
    vectors, y = torch.randn(4, 5), torch.tensor([[1], [1]], dtype=torch.int32)
    assert contrastive_loss(vectors, y, Loop(epochs=1)) == 0  # nothing is left to distinguish
    assert contrastive_loss(vectors, torch.tensor([[1], [2]], dtype=torch.int32), Loop(epochs=1)) > 0


def test_matryoshka_averages_the_losses_of_the_first_values():
    torch.manual_seed(0)
    vectors, y = torch.randn(8, 6), torch.arange(4, dtype=torch.int32)[:, None]
    losses = [contrastive_loss(vectors[:, :length], y, Loop(epochs=1)) for length in (2, 6)]
    nested = contrastive_loss(vectors, y, Loop(epochs=1, matryoshka=(2,)))
    torch.testing.assert_close(nested, (losses[0] + losses[1]) / 2)


@pytest.mark.parametrize("options", [{}, {"matryoshka": (4,)}])
def test_training_finds_the_positives_of_rows_that_it_has_not_seen(options):
    torch.manual_seed(0)
    network, val = build_network(NETWORK), make_pairs(60, seed=1)
    _, untrained = evaluate(network, val)
    loop = Loop(epochs=8, batch_size=32, learning_rate=0.01, **options)
    history = train(network, TrainingData(make_pairs(400), val), loop)
    assert untrained < 0.6
    assert history[-1].val_score > 0.95
    assert history[-1].val_loss < history[0].val_loss
    if options:
        short = torch.nn.Sequential(network, First(4))
        assert evaluate(short, val)[1] > 0.9


class First(torch.nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : self.length]


def test_no_epoch_leaves_the_network_as_it_is():
    torch.manual_seed(0)
    network = build_network(NETWORK)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert (
        train(
            network,
            TrainingData(make_pairs(40), make_pairs(20)),
            Loop.model_construct(**{**Loop(epochs=1).__dict__, "epochs": 0}),
        )
        == []
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_student_learns_the_similarities_of_its_teacher_whatever_its_width():
    torch.manual_seed(0)
    teacher, y = torch.randn(10, 16), make_pairs(5).y
    assert target_distance(y) is similarity_loss
    student = torch.randn(10, 4, requires_grad=True)
    optimizer = torch.optim.Adam([student], 0.05)
    distances = []
    for _ in range(100):
        optimizer.zero_grad()
        distance = similarity_loss(student, teacher, 1.0)
        distance.backward()
        optimizer.step()
        distances.append(distance.item())
    assert similarity_loss(teacher * 3, teacher, 1.0) == pytest.approx(0, abs=1e-5)  # only directions count
    assert distances[-1] < 0.3 * distances[0]


def test_gradients_for_pruning_are_those_of_the_contrastive_loss():
    torch.manual_seed(0)
    network, pairs = build_network(NETWORK), make_pairs(8)
    compute_gradients(network, pairs)
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    (contrastive_loss(network(join_pairs(pairs.x, pairs.y)), pairs.y, Loop(epochs=1)) / 8).backward()
    assert gradients
    for parameter, gradient in zip(
        (parameter for parameter in network.parameters() if parameter.grad is not None), gradients, strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient)
