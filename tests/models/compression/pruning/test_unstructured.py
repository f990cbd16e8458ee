"""Unstructured pruning: scores, masks, and training with fixed masks."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import CandidateSpec, Compression, Sparsification
from bloomery.models.compression.pruning.unstructured import (
    compute_masks,
    compute_n_of_m_masks,
    fixed_masks,
    lamp_scores,
    maskable_weights,
    measure_density,
    n_of_m_mask,
    scheduled_density,
)
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import TrainingData
from bloomery.models.training.loop import evaluate, train

VALUES = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40)


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 2))


@given(num_steps=st.integers(1, 50), last=st.floats(0.001, 1))
def test_the_density_falls_to_the_final_one_quickly_at_first(num_steps, last):
    shares = [scheduled_density(step, num_steps, last=last) for step in range(num_steps + 1)]
    assert (shares[0], shares[-1]) == (1.0, last)
    differences = [before - after for before, after in itertools.pairwise(shares)]
    assert all(difference >= -1e-12 for difference in differences)
    assert all(first >= second - 1e-12 for first, second in itertools.pairwise(differences))
    assert scheduled_density(num_steps + 1, num_steps, last=last) == last


@given(VALUES)
def test_a_lamp_score_is_a_share_of_the_larger_squares(values):
    weight = torch.tensor(values).reshape(1, -1)
    scores = lamp_scores(weight).flatten()
    squares = weight.double().flatten().square()
    for position in range(len(values)):
        larger = squares[squares > squares[position]].sum()
        equal_squares = squares[squares == squares[position]]
        if squares[position] == 0:
            assert scores[position] == 0
        else:  # equal weights are ordered by position
            possible = squares[position] / (larger + torch.arange(1, len(equal_squares) + 1) * squares[position])
            assert (possible - scores[position]).abs().min() < 1e-9
    if squares.max() > 0:
        assert scores.max() == 1


@pytest.mark.parametrize("criterion", ["lamp", "global_magnitude", "layer_magnitude"])
@pytest.mark.parametrize("density", [0.01, 0.3, 1.0])
def test_masks_have_the_requested_density(criterion, density):
    masks = compute_masks(two_layers(), density, criterion)
    assert {name: mask.shape for name, mask in masks.items()} == {"0.weight": (30, 20), "1.weight": (2, 30)}
    num_kept = sum(int(mask.sum()) for mask in masks.values())
    if criterion == "layer_magnitude":
        assert [int(mask.sum()) for mask in masks.values()] == [round(density * 600), max(round(density * 60), 1)]
    else:
        assert num_kept == round(density * 660)


def test_global_magnitude_can_remove_a_layer_and_lamp_cannot():
    network = two_layers()
    with torch.no_grad():
        network[1].weight.mul_(1e-3)
    assert not compute_masks(network, 0.05, "global")["1.weight"].any()
    assert compute_masks(network, 0.05, "lamp")["1.weight"].any()


@pytest.mark.parametrize("criterion", ["lamp", "global_magnitude", "layer_magnitude"])
def test_masks_only_shrink_from_round_to_round(criterion):
    network = two_layers()
    before = compute_masks(network, 0.3, criterion)
    with fixed_masks(network, before):
        pass
    after = compute_masks(network, 0.1, criterion)
    assert all(bool((before[name] | ~after[name]).all()) for name in before)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_an_impossible_density_is_refused(density):
    with pytest.raises(RecipeInvalid, match="the density is"):
        compute_masks(two_layers(), density)


@settings(deadline=None)
@given(
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 17),
    kernel=st.sampled_from([(), (3,), (2, 2)]),
    n=st.integers(1, 4),
    num_removed=st.integers(0, 4),
)
def test_the_largest_inputs_of_each_group_stay(outputs, inputs, kernel, n, num_removed):
    m = n + num_removed
    weight = torch.randn(outputs, inputs, *kernel, generator=torch.Generator().manual_seed(outputs * 31 + inputs))
    mask = n_of_m_mask(weight, n, m)
    assert mask.shape == weight.shape
    for start in range(0, inputs // m * m, m):
        is_kept, sizes = mask[:, start : start + m], weight[:, start : start + m].abs()
        assert bool((is_kept.sum(1) == n).all())
        assert bool((sizes.masked_fill(~is_kept, torch.inf).amin(1) >= sizes.masked_fill(is_kept, 0).amax(1)).all())
    assert bool(mask[:, inputs // m * m :].all())


@pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (-1, 2)])
def test_an_impossible_pattern_is_refused(n, m):
    with pytest.raises(RecipeInvalid, match=f"{n}:{m}"):
        n_of_m_mask(torch.ones(2, 8), n, m)


def test_a_pattern_applies_to_layers_that_multiply_adjacent_inputs():
    network = nn.ModuleDict(
        {
            "embedding": nn.Embedding(9, 8),
            "gru": nn.GRU(8, 12),
            "conv": nn.Conv1d(12, 6, 3),
            "of_one": nn.Conv1d(1, 6, 3),
            "linear": nn.Linear(6, 2),
        }
    )
    shares = {name: float(mask.float().mean()) for name, mask in compute_n_of_m_masks(network, 1, 4).items()}
    assert shares == {
        "gru.weight_ih_l0": 0.25,
        "gru.weight_hh_l0": 0.25,
        "conv.weight": 0.25,
        "of_one.weight": 1.0,  # fewer than four inputs
        "linear.weight": 0.5,  # the last two of six inputs are an incomplete group
    }


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_candidate_keeps_its_pattern_after_training(rounds, trained, splits):
    compression = Compression(fine_tune=Loop(epochs=2, learning_rate=1e-3))
    spec = CandidateSpec(name="pattern", sparsify=Sparsification(pattern="2:4", rounds=rounds))
    network = compress_network(
        trained.network, trained.blueprint, spec, FineTuning(splits.train, splits.val, trained.network, compression)
    )
    weights = maskable_weights(network).values()
    assert [tuple(weight.shape) for weight in weights] == [(8, 1, 3, 3), (16, 8, 3, 3), (32, 64), (10, 32)]
    for weight in itertools.islice(weights, 1, None):
        num_kept = (weight != 0).unflatten(1, (-1, 4)).sum(2)
        assert bool((num_kept <= 2).all())
        assert (num_kept == 2).float().mean() > 0.95
    assert evaluate(network, splits.val)[1] > evaluate(trained.network, splits.val)[1] - 0.1


@pytest.mark.parametrize("ema", [None, 0.9])
def test_zeros_stay_zero_during_training(trained, splits, ema):
    network = copy.deepcopy(trained.network)
    masks = compute_masks(network, 0.2)
    loss, _ = evaluate(network, splits.val)
    with fixed_masks(network, masks):
        before = {name: weight.detach().clone() for name, weight in maskable_weights(network).items()}
        loop = Loop(epochs=2, learning_rate=5e-3, weight_decay=0.1, ema=ema, best_by="score")
        history = train(network, TrainingData(splits.train, splits.val), loop)
    assert measure_density(network) <= 0.2 + 1e-3
    for name, weight in maskable_weights(network).items():
        assert not weight.view(torch.int32)[~masks[name]].any()  # no negative zeros
        assert bool((weight[masks[name]] != before[name][masks[name]]).any())
    assert min(epoch.val_loss for epoch in history) < loss * 3
    with torch.no_grad():
        assert not any(parameter._backward_hooks for parameter in network.parameters())


def test_weights_are_masked_after_a_failure():
    network = two_layers()
    masks = compute_masks(network, 0.1)

    def fail() -> None:
        with torch.no_grad():
            network[0].weight.add_(1)
        raise KeyError

    with pytest.raises(KeyError), fixed_masks(network, masks):
        fail()
    assert not network[0].weight[~masks["0.weight"]].any()
