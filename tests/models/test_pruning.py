"""Structured pruning: smaller networks of the same kind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.config import Cnn
from models.networks import Blueprint, build, num_parameters
from models.pruning import prune
from models.training import evaluate


def blueprint_of(channels: tuple[int, ...], hidden: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Blueprint:
    config = Cnn(kind="cnn", channels=channels, hidden=hidden)
    return Blueprint(config=config, input_shape=shape, num_classes=3)


@pytest.mark.parametrize(("share", "channels", "hidden"), [(0.25, (6, 12), 24), (0.5, (4, 8), 16), (0.75, (2, 4), 8)])
def test_the_share_of_channels_and_hidden_units_leaves(trained, share, channels, hidden):
    network, blueprint = prune(trained.network, trained.blueprint, share)
    assert (blueprint.config.channels, blueprint.config.hidden) == (channels, hidden)
    assert tuple(block[0].weight.shape[0] for block in network.blocks) == channels
    assert network.head.weight.shape == (10, hidden)
    assert num_parameters(network) < num_parameters(trained.network)
    assert not network.training


def test_a_pruned_network_can_be_built_again_from_its_blueprint(trained, parts):
    network, blueprint = prune(trained.network, trained.blueprint, 0.5)
    again = build(blueprint).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(parts.test.x), network(parts.test.x))
    assert blueprint.input_shape == trained.blueprint.input_shape
    assert blueprint.config.dropout == trained.blueprint.config.dropout


def test_the_source_is_left_as_it_is(trained, parts):
    before = copy.deepcopy(trained.network.state_dict())
    blueprint = trained.blueprint.model_dump()
    network, _ = prune(trained.network, trained.blueprint, 0.5)
    with torch.no_grad():
        network.head.bias += 1
    assert all(torch.equal(before[name], value) for name, value in trained.network.state_dict().items())
    assert trained.blueprint.model_dump() == blueprint
    assert evaluate(trained.network, parts.test)[1] > 0.85


@pytest.mark.parametrize("is_training", [True, False])
def test_the_network_stays_in_its_mode(trained, is_training):
    source = copy.deepcopy(trained.network).train(is_training)
    prune(source, trained.blueprint, 0.5)
    assert source.training == is_training


def test_what_stays_is_a_part_of_what_was(trained):
    network, _ = prune(copy.deepcopy(trained.network).train(), trained.blueprint, 0.5)
    was, now = (one.blocks[0][1] for one in (trained.network, network))
    pairs = list(zip(was.running_mean.tolist(), was.weight.tolist(), strict=True))
    assert set(zip(now.running_mean.tolist(), now.weight.tolist(), strict=True)) < set(pairs)


def test_the_weakest_leave_first():
    torch.manual_seed(0)
    blueprint = blueprint_of((6, 8), 10)
    network = build(blueprint).eval()
    dead = {network.blocks[0]: [0, 2, 5], network.blocks[1]: [1, 2, 3, 7]}
    with torch.no_grad():
        for block, channels in dead.items():
            block[0].weight[channels] = 0
            block[1].weight[channels] = 0
        network.blocks[1][0].weight[:, [0, 2, 5]] = 0
        network.hidden.weight[[0, 1, 4, 8, 9]] = 0
        network.hidden.bias[[0, 1, 4, 8, 9]] = 0
        network.hidden.weight.unflatten(1, (8, -1))[:, [1, 2, 3, 7]] = 0
        network.head.weight[:, [0, 1, 4, 8, 9]] = 0
    smaller, pruned = prune(network, blueprint, 0.5)
    x = torch.randn(20, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), network(x), atol=1e-5, rtol=1e-5)
    assert (pruned.config.channels, pruned.config.hidden) == ((3, 4), 5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (3, 28, 28)], ids=str)
def test_networks_for_images_of_any_size_can_be_pruned(shape):
    blueprint = blueprint_of((4, 6, 8), 12, shape)
    network, pruned = prune(build(blueprint), blueprint, 0.5)
    assert pruned.config.channels == (2, 3, 4)
    assert network(torch.randn(5, *shape)).shape == (5, 3)


def test_a_pruned_network_can_be_pruned_again(trained):
    once = prune(trained.network, trained.blueprint, 0.5)
    _, twice = prune(*once, 0.5)
    assert (twice.config.channels, twice.config.hidden) == ((2, 4), 8)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.99])
def test_however_large_the_share_every_layer_shrinks_and_none_vanishes(share):
    blueprint = blueprint_of((4, 8), 16)
    _, pruned = prune(build(blueprint), blueprint, share)
    widths = (*pruned.config.channels, pruned.config.hidden)
    assert all(1 <= now <= max(1, before * 0.6) for now, before in zip(widths, (4, 8, 16), strict=True))


def test_a_network_of_single_channels_stays_as_it_is():
    blueprint = blueprint_of((1,), 1)
    assert prune(build(blueprint), blueprint, 0.5)[1] == blueprint


def test_a_network_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="no structured pruning for Linear"):
        prune(nn.Linear(3, 3), blueprint_of((2,), 2), 0.5)
