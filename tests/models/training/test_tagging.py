"""Tags of words are learnt at the first token of each word; other positions do not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.distillation import target_distance
from bloomery.models.compression.pruning.importance import compute_gradients
from bloomery.models.features.labels import IGNORED_LABEL
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData, iterate_parts
from bloomery.models.training.loop import evaluate, predict, train
from bloomery.models.training.optimization.loss import build_loss, is_multilabel, loss_and_metric_sums, score_outputs
from bloomery.models.training.optimization.score_measure import build_measure
from bloomery.models.training.optimization.tag_loss import tag_distance

TAGS = ("B-X", "I-X", "O")


def make_sentences(num_rows: int, seed: int = 0) -> Examples:
    """Tokens 2 and 3 begin an entity, which token 4 continues; after others it is none. Token 9 is no word's first."""
    random = np.random.default_rng(seed)
    x = random.integers(2, 10, (num_rows, 8))
    x[np.arange(8) >= random.integers(1, 9, num_rows)[:, None]] = 0
    is_start = (x == 2) | (x == 3)
    follows = np.concatenate([np.zeros((num_rows, 1), bool), is_start[:, :-1]], axis=1) & (x == 4)
    y = np.where(is_start, 0, np.where(follows, 1, 2))
    y[(x == 0) | (x == 9)] = IGNORED_LABEL
    return Examples(torch.from_numpy(x).float(), torch.from_numpy(y.astype(np.int16)), np.arange(num_rows))


def make_network(kind: str = "transformer", **options: object) -> torch.nn.Module:
    small = {"hidden": 24, "bidirectional": True} if kind == "rnn" else {"width": 32, "num_layers": 1, "num_heads": 2}
    config = TypeAdapter(Model).validate_python({"kind": kind, "dropout": 0.0, **small, **options})
    layout = Layout(kind="tokens", shape=(8,), num_tokens=10)
    torch.manual_seed(0)
    return build_network(Blueprint(config=config, layout=layout, task="tagging", num_outputs=3))


def test_tags_are_neither_sets_nor_texts_and_words_count_alike():
    y = torch.tensor([[0, IGNORED_LABEL, 2], [1, IGNORED_LABEL, IGNORED_LABEL]], dtype=torch.int16)
    assert not is_multilabel(y)
    outputs = torch.randn(2, 3, 3)
    words = F.cross_entropy(outputs[[0, 0, 1], [0, 2, 0]], torch.tensor([0, 2, 1]), reduction="none")
    loss = build_loss(Loop(epochs=1), y)
    torch.testing.assert_close(loss(outputs, y), 2 * words.mean())
    torch.testing.assert_close(loss_and_metric_sums(outputs, y)[0], words.sum().double())
    changed = outputs.clone()
    changed[0, 1] = changed[1, 1:] = torch.inf
    torch.testing.assert_close(loss(changed, y), loss(outputs, y))
    assert loss(outputs, torch.full_like(y, IGNORED_LABEL)) == 0


def test_common_padding_may_be_missing_and_weights_are_those_of_words():
    y = torch.tensor([[0, 2, IGNORED_LABEL], [2, 2, IGNORED_LABEL]], dtype=torch.int16)
    outputs = torch.randn(2, 2, 3)
    weighted = build_loss(Loop(epochs=1, class_weights="balanced", label_smoothing=0.1), y)(outputs, y)
    expected = F.cross_entropy(
        outputs.reshape(4, 3),
        torch.tensor([0, 2, 2, 2]),
        weight=torch.tensor([2.0, 0.0, 2 / 3]),
        label_smoothing=0.1,
        reduction="sum",
    )
    torch.testing.assert_close(weighted, expected / 2)


@pytest.mark.parametrize("kind", ["transformer", "rnn"])
@pytest.mark.parametrize("score", [None, Score(name="entity_f1")])
def test_training_learns_tags_that_depend_on_the_words_before(kind, score):
    network, val = make_network(kind), make_sentences(100, seed=1)
    measure = build_measure(score, "tagging", None, TAGS)
    loop = Loop(epochs=20, batch_size=32, learning_rate=0.01, best_by="score")
    history = train(network, TrainingData(make_sentences(600), val, 0, measure), loop)
    assert history[-1].val_score > 0.94
    assert history[-1].val_loss < 0.1 < history[0].val_loss
    outputs = predict(network, val.x).numpy()
    assert outputs.shape == (100, 8, 3)
    if score is None:
        assert score_outputs(outputs, val.y) == pytest.approx(evaluate(network, val)[1])


def test_rows_are_evaluated_in_equal_parts_so_that_each_process_has_some():
    rows = make_sentences(9)
    parts = list(iterate_parts(rows, 4))
    assert [len(y) for _, y in parts] == [3, 3, 3]
    assert torch.equal(torch.cat([x for x, _ in parts]), rows.x)
    classes = Examples(rows.x, torch.zeros(9, dtype=torch.int64), rows.key)
    assert [len(y) for _, y in iterate_parts(classes, 4)] == [9]
    assert [len(y) for _, y in iterate_parts(Examples(rows.x[:0], rows.y[:0], rows.key[:0]), 4)] == [0]


def test_a_teacher_is_compared_at_all_tokens_but_padding():
    teacher, student = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    teacher[1, 2:] = student[1, 2:] = teacher[0, 4:] = 0
    assert target_distance(make_sentences(2).y) is tag_distance
    assert tag_distance(teacher[:, :4], teacher, 2.0) == pytest.approx(0, abs=1e-6)
    pairs = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    divergences = [F.kl_div(student[at].log_softmax(0), teacher[at].softmax(0), reduction="sum") for at in pairs]
    torch.testing.assert_close(tag_distance(student, teacher, 1.0), 2 * torch.stack(divergences).mean())


def test_gradients_for_pruning_are_those_of_the_loss_of_words():
    network, rows = make_network(), make_sentences(16)
    compute_gradients(network, rows)
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    (build_loss(Loop(epochs=1), rows.y)(network(rows.x), rows.y) / 16).backward()
    assert gradients
    for gradient, parameter in zip(gradients, (p for p in network.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
