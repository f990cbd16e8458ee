"""Weight clustering: shared values, and training of the centroids."""

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
from bloomery.models.training.data.batches import TrainingData
from bloomery.models.training.loop import evaluate, train

VALUES = st.lists(st.floats(-100, 100), max_size=60).map(np.array)


@given(VALUES, st.integers(2, 9))
def test_each_value_has_the_nearest_centroid_and_each_centroid_is_a_mean(values, num_clusters):
    centroids, indices = kmeans(values, num_clusters)
    assert len(centroids) <= num_clusters
    assert np.all(np.diff(centroids) > 0)
    distances = np.abs(values[:, None] - centroids[None])
    assert np.allclose(distances[np.arange(len(values)), indices], distances.min(axis=1, initial=np.inf), atol=1e-9)
    for index in range(len(centroids)):
        assert abs(values[indices == index].mean() - centroids[index]) < 1e-6


@given(st.lists(st.sampled_from([-3.0, -1.0, 2.0, 7.0]), min_size=1), st.integers(4, 9))
def test_few_distinct_values_are_kept_exactly(values, num_clusters):
    num_initial_centroids = max(num_clusters, 30)  # enough evenly spaced initial centroids to find all values
    centroids, indices = kmeans(np.array(values), num_initial_centroids)
    assert np.allclose(centroids[indices], values)


def test_the_inertia_is_that_of_scikit_learn():
    from sklearn.cluster import KMeans

    values = np.random.default_rng(0).normal(size=500)
    centroids, indices = kmeans(values, 8)
    start = np.linspace(values.min(), values.max(), 8)[:, None]
    reference = KMeans(8, init=start, n_init=1, max_iter=500, tol=0).fit(values[:, None])
    assert ((values - centroids[indices]) ** 2).sum() == pytest.approx(reference.inertia_, rel=1e-6)


def test_zeros_stay_and_other_weights_take_few_bfloat16_values(trained):
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


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights():
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, -2.0]]))
    codebooks = {"weight": fit_codebook(layer.weight, 2)}
    with shared_weights(layer, codebooks):
        layer(torch.tensor([[1.0, 10.0, 100.0]])).backward()
        (centroids,) = layer.parameters()
        assert centroids.tolist() == [-2.0, 1.0]
        assert centroids.grad.tolist() == [100.0, 11.0]


def test_centroids_are_trained_and_weights_stay_clustered(trained, splits):
    network = copy.deepcopy(trained.network)
    with shared_weights(network, cluster_weights(network, 2)):
        initial_loss, _ = evaluate(network, splits.val)
        centroids = [parameter.detach().clone() for parameter in network.parameters()]
        train(network, TrainingData(splits.train, splits.val), Loop(epochs=2, learning_rate=3e-3, batch_size=32))
        assert any(not torch.equal(*pair) for pair in zip(centroids, network.parameters(), strict=True))
    trained_loss, _ = evaluate(network, splits.val)
    assert trained_loss < initial_loss
    assert all(len(weight[weight != 0].unique()) <= 2 for weight in network.parameters())


@pytest.mark.parametrize("num_clusters", [1, 257])
def test_an_impossible_number_of_clusters_is_refused(num_clusters):
    with pytest.raises(RecipeInvalid, match=f"{num_clusters} clusters"):
        cluster_weights(nn.Linear(2, 2), num_clusters)


def test_the_forward_pass_uses_centroids_while_weights_are_trained(trained, splits):
    network = copy.deepcopy(trained.network)
    masks = compute_masks(network, 0.3)
    before = copy.deepcopy(network)
    with fixed_masks(network, masks):
        with straight_through_clusters(network, 3):
            network.eval()
            assert len(network.head.weight.unique()) <= 4
            loss_before, _ = evaluate(network, splits.val)
            train(network, TrainingData(splits.train, splits.val), Loop(epochs=2, learning_rate=3e-3))
        assert len(network.head.weight.unique()) > 4
        assert not network.head.weight[~masks["head.weight"]].any()
    assert not torch.equal(network.head.weight, before.head.weight)
    with shared_weights(network, cluster_weights(network, 3)):
        trained_loss, _ = evaluate(network, splits.val)
    assert trained_loss < loss_before
