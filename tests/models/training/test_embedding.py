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
from bloomery.models.training.config import Augment, Loop
from bloomery.models.training.data.augmentation import batch_generator
from bloomery.models.training.data.augmented_batches import augment_rows, move_batch
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import evaluate, train
from bloomery.models.training.optimization.contrastive_loss import (
    contrastive_loss,
    join_pairs,
    pair_tokens,
    similarity_loss,
)
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


def tokens_of(queries: list[int], positives: list[int]) -> torch.Tensor:
    """The `pair_tokens` of texts with one token."""
    return torch.tensor([*queries, *positives], dtype=torch.int32)[:, None]


def test_labels_that_are_texts_are_neither_sets_nor_numbers():
    y = make_pairs(3).y
    assert not is_multilabel(y)
    assert not is_regression(y)


def test_the_loss_is_the_cross_entropy_of_the_own_positive():
    torch.manual_seed(0)
    vectors, tokens = torch.randn(6, 5), tokens_of([4, 5, 6], [1, 2, 3])
    queries, positives = F.normalize(vectors[:3], dim=1), F.normalize(vectors[3:], dim=1)
    expected = F.cross_entropy(queries @ positives.T / 0.1, torch.arange(3), reduction="sum")
    torch.testing.assert_close(contrastive_loss(vectors, tokens, Loop(epochs=1, temperature=0.1)), expected)


@pytest.mark.parametrize(
    ("queries", "positives"),
    [
        pytest.param([2, 3], [1, 1], id="equal-positives"),
        pytest.param([2, 2], [3, 4], id="two-positives-of-a-query"),
        pytest.param([2, 3], [3, 2], id="the-query-itself"),
    ],
)
def test_a_text_that_is_right_for_a_query_is_no_negative(queries: list[int], positives: list[int]):
    torch.manual_seed(0)
    vectors = torch.randn(4, 5)
    assert contrastive_loss(vectors, tokens_of(queries, positives), Loop(epochs=1)) == 0  # nothing to distinguish
    assert contrastive_loss(vectors, tokens_of([1, 2], [3, 4]), Loop(epochs=1)) > 0


def test_batches_know_queries_and_positives_as_they_are_before_augmentation():
    pairs = make_pairs(8)
    loop = Loop(epochs=1, augment=Augment(drop_tokens=0.9))
    batch = augment_rows((pairs.x, pairs.y), loop, batch_generator(0, 1, 0))
    assert not torch.equal(batch.x, pairs.x)
    labels = []
    x, losses = move_batch(batch, lambda outputs, y: labels.append(y) or outputs.sum(), torch.device("cpu"))
    losses(torch.zeros(16, 1), slice(None))
    assert torch.equal(labels[0], pair_tokens(pairs.x, pairs.y))
    assert torch.equal(x, torch.cat([batch.x, pairs.y.float()]))


def test_matryoshka_averages_the_losses_of_the_first_values():
    torch.manual_seed(0)
    vectors, tokens = torch.randn(8, 6), tokens_of([5, 6, 7, 8], [1, 2, 3, 4])
    losses = [contrastive_loss(vectors[:, :length], tokens, Loop(epochs=1)) for length in (2, 6)]
    nested = contrastive_loss(vectors, tokens, Loop(epochs=1, matryoshka=(2,)))
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
    tokens = pair_tokens(pairs.x, pairs.y)
    (contrastive_loss(network(join_pairs(pairs.x, pairs.y)), tokens, Loop(epochs=1)) / 8).backward()
    assert gradients
    for parameter, gradient in zip(
        (parameter for parameter in network.parameters() if parameter.grad is not None), gradients, strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient)
