"""Private training: the privacy budget, accuracy, reproducibility, and refused networks."""

from __future__ import annotations

import warnings

import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, FtTransformer, Mlp, Model, Rnn
from bloomery.models.training.config import Loop, Privacy
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.differential_privacy import train_privately

LOOP = Loop(epochs=8, batch_size=100, learning_rate=5e-3, schedule="constant")
MLP = Mlp(kind="mlp", hidden=(32,), norm="none", dropout=0.0)


def train_with_privacy(splits, epsilon: float, config: Model = MLP, loop: Loop = LOOP, seed: int = 0):
    set_deterministic(0, num_threads=1)
    network = build_network(Blueprint(config=config, layout=Layout(kind="image", shape=(1, 8, 8)), num_outputs=10))
    history, privacy_spent = train_privately(
        network, TrainingData(splits.train, splits.val, seed=seed), loop, Privacy(epsilon=epsilon, delta=1e-4)
    )
    return network, history, privacy_spent


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_nearly_all_of_epsilon_is_spent_and_no_more(splits, epsilon):
    _, _, privacy_spent = train_with_privacy(splits, epsilon)
    assert 0.95 * epsilon < privacy_spent.epsilon <= epsilon
    assert privacy_spent.delta == 1e-4


def test_more_privacy_needs_more_noise_and_costs_accuracy(splits):
    runs = {epsilon: train_with_privacy(splits, epsilon)[1:] for epsilon in (0.2, 8.0)}
    assert runs[0.2][1].noise > 2 * runs[8.0][1].noise
    assert runs[0.2][0][-1].val_score + 0.1 < runs[8.0][0][-1].val_score
    assert runs[8.0][0][-1].val_score > 0.6


def test_equal_seeds_give_equal_bits_and_other_seeds_other_bits(splits):
    loop = LOOP.model_copy(update={"epochs": 1})
    weights, repeated, of_other_seed = (
        train_with_privacy(splits, 3.0, loop=loop, seed=seed)[0].state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(weights[name], repeated[name]) for name in weights)
    assert not any(torch.equal(weights[name], of_other_seed[name]) for name in weights)


def test_a_privately_trained_network_can_be_exported(splits):
    network, _, _ = train_with_privacy(splits, 3.0, loop=LOOP.model_copy(update={"epochs": 1}))
    assert not network.training
    assert {key for parameter in network.parameters() for key in vars(parameter)} == set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (splits.val.x[:2],))
    torch.testing.assert_close(program.module()(splits.val.x[:2]), network(splits.val.x[:2]))


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (Cnn(kind="cnn"), Layout(kind="image", shape=(1, 8, 8))),
        (Mlp(kind="mlp"), Layout(kind="flat", shape=(6,))),
        (Rnn(kind="rnn"), Layout(kind="sequence", shape=(6, 2))),
        (Rnn(kind="rnn", cell="elman"), Layout(kind="sequence", shape=(6, 2))),
        (FtTransformer(kind="ft_transformer", width=8, num_heads=2), Layout(kind="flat", shape=(6,))),
    ],
)
def test_networks_that_mix_rows_or_lack_per_row_gradients_are_refused(config, layout):
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=2))
    rows = Examples(torch.zeros(10, *layout.shape), torch.zeros(10, dtype=torch.int64), torch.arange(10).numpy())
    with pytest.raises(RecipeInvalid, match="cannot be trained privately"):
        train_privately(network, TrainingData(rows, rows), LOOP, Privacy(epsilon=1, delta=1e-3))


@pytest.mark.parametrize(
    ("epsilon", "delta", "message"),
    [(1.0, 0.01, "allows complete rows to leak"), (1e-4, 1e-4, "no noise achieves epsilon 0.0001")],
)
def test_meaningless_or_infeasible_privacy_is_refused(epsilon, delta, message):
    network = build_network(Blueprint(config=MLP, layout=Layout(kind="flat", shape=(6,)), num_outputs=2))
    rows = Examples(torch.zeros(100, 6), torch.zeros(100, dtype=torch.int64), torch.arange(100).numpy())
    with pytest.raises(RecipeInvalid, match=message):
        train_privately(network, TrainingData(rows, rows), LOOP, Privacy(epsilon=epsilon, delta=delta))
