"""Weights that share a few values, and values that learn."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.pruning.unstructured import compute_masks, fixed_masks
from bloomery.models.compression.weight_clustering import (
    cluster_weights,
    fit_codebook,
    kmeans,
    shared_weights,
    straight_through_clusters,
)
from bloomery.models.training.config import Loop
from bloomery.models.training.loop import evaluate, train

FIGURES = st.lists(st.floats(-100, 100), max_size=60).map(np.array)


@given(FIGURES, st.integers(2, 9))
def test_each_figure_has_the_nearest_value_and_each_value_is_its_figures_mean(figures, num_values):
    values, codes = kmeans(figures, num_values)
    assert len(values) <= num_values
    assert np.all(np.diff(values) > 0)
    apart = np.abs(figures[:, None] - values[None])
    assert np.allclose(apart[np.arange(len(figures)), codes], apart.min(axis=1, initial=np.inf), atol=1e-9)
    for code in range(len(values)):
        assert abs(figures[codes == code].mean() - values[code]) < 1e-6


@given(st.lists(st.sampled_from([-3.0, -1.0, 2.0, 7.0]), min_size=1), st.integers(4, 9))
def test_figures_of_few_values_are_kept_if_there_is_room(figures, num_values):
    assume_room = max(num_values, 30)  # evenly spaced beginnings find them all
    values, codes = kmeans(np.array(figures), assume_room)
    assert np.allclose(values[codes], figures)


def test_values_are_as_close_as_those_of_scikit_learn():
    from sklearn.cluster import KMeans

    figures = np.random.default_rng(0).normal(size=500)
    values, codes = kmeans(figures, 8)
    start = np.linspace(figures.min(), figures.max(), 8)[:, None]
    theirs = KMeans(8, init=start, n_init=1, max_iter=500, tol=0).fit(figures[:, None])
    assert ((figures - values[codes]) ** 2).sum() == pytest.approx(theirs.inertia_, rel=1e-6)


def test_zeros_stay_and_the_rest_takes_few_values_of_16_bits(trained):
    network = copy.deepcopy(trained.network)
    with fixed_masks(network, compute_masks(network, 0.3)):
        pass
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    with shared_weights(network, cluster_weights(network, 8, num_bias_clusters=4)):
        pass
    assert dict(network.named_parameters()).keys() == before.keys()
    for name, weight in network.named_parameters():
        assert torch.equal(weight == 0, before[name] == 0)
        assert len(weight[weight != 0].unique()) <= (8 if weight.dim() > 1 else 4)
        assert torch.equal(weight.bfloat16().float(), weight)
        assert (weight - before[name]).abs().max() < before[name].abs().max() / 2


def test_a_value_learns_by_the_gradients_of_all_that_share_it():
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, -2.0]]))
    books = {"weight": fit_codebook(layer.weight, 2)}
    with shared_weights(layer, books):
        layer(torch.tensor([[1.0, 10.0, 100.0]])).backward()
        (values,) = layer.parameters()
        assert values.tolist() == [-2.0, 1.0]
        assert values.grad.tolist() == [100.0, 11.0]


def test_values_learn_in_training_and_stay_few(trained, parts):
    network = copy.deepcopy(trained.network)
    with shared_weights(network, cluster_weights(network, 2)):
        coarse, _ = evaluate(network, parts.val)
        values = [parameter.detach().clone() for parameter in network.parameters()]
        train(network, parts.train, parts.val, Loop(epochs=2, learning_rate=3e-3, batch_size=32), seed=0)
        assert any(not torch.equal(*pair) for pair in zip(values, network.parameters(), strict=True))
    learnt, _ = evaluate(network, parts.val)
    assert learnt < coarse
    assert all(len(weight[weight != 0].unique()) <= 2 for weight in network.parameters())


@pytest.mark.parametrize("num_values", [1, 257])
def test_an_impossible_number_of_values_is_refused(num_values):
    with pytest.raises(RecipeInvalid, match=f"{num_values} clusters"):
        cluster_weights(nn.Linear(2, 2), num_values)


def test_a_network_answers_with_few_values_while_its_weights_learn(trained, parts):
    network = copy.deepcopy(trained.network)
    masks = compute_masks(network, 0.3)
    before = copy.deepcopy(network)
    with fixed_masks(network, masks):
        with straight_through_clusters(network, 3):
            network.eval()
            assert len(network.head.weight.unique()) <= 4
            answered, _ = evaluate(network, parts.val)
            train(network, parts.train, parts.val, Loop(epochs=2, learning_rate=3e-3), seed=0)
        assert len(network.head.weight.unique()) > 4
        assert not network.head.weight[~masks["head.weight"]].any()
    assert not torch.equal(network.head.weight, before.head.weight)
    with shared_weights(network, cluster_weights(network, 3)):
        learnt, _ = evaluate(network, parts.val)
    assert learnt < answered
