"""Structured pruning: smaller networks of the same kind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from data_contracts.errors import RecipeInvalid
from data_contracts.layouts import Layout
from models.compression.pruning import prune
from models.networks.blueprint import Blueprint, build, num_parameters
from models.networks.config import Cnn, FtTransformer, Gpt, HuggingFace, LeNet, Mlp, Model, ResNet, Rnn, Transformer
from models.training.loop import evaluate


def blueprint_of(channels: tuple[int, ...], hidden: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Blueprint:
    config = Cnn(kind="cnn", channels=channels, hidden=hidden)
    return Blueprint(
        config=config, layout=Layout(kind="image" if len(shape) == 3 else "flat", shape=shape), num_outputs=3
    )


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
    assert blueprint.layout == trained.blueprint.layout
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


PRUNABLE = {
    "cnn": (Cnn(kind="cnn", channels=(4, 6), convolutions=2, hidden=0), (1, 9, 8)),
    "lenet": (LeNet(kind="lenet", channels=(4, 6), hidden=8), (1, 16, 20)),
    "resnet-18": (ResNet(kind="resnet", width=4), (3, 16, 16)),
    "resnet-50": (ResNet(kind="resnet", depth=50, width=2, stem="large"), (1, 32, 32)),
    "mlp": (Mlp(kind="mlp", hidden=(8, 4)), (6,)),
    "ft_transformer": (FtTransformer(kind="ft_transformer", width=8, num_layers=2, num_heads=2), (6,)),
}


def prunable_blueprint(name: str) -> Blueprint:
    config, shape = PRUNABLE[name]
    categories = ((1, 5), (4, 3)) if config.kind in ("mlp", "ft_transformer") else ()
    layout = Layout(kind="image" if len(shape) == 3 else "flat", shape=shape, categories=categories)
    return Blueprint(config=config, layout=layout, num_outputs=3)


@torch.no_grad()
def kill_first_half(network: nn.Module, kind: str) -> None:
    """The first half of what may leave gives 0, and nothing reads it."""
    if kind == "ft_transformer":
        for block in network.blocks:
            for layer in (block.up, block.gate):
                layer.weight[: layer.out_features // 2] = 0
                layer.bias[: layer.out_features // 2] = 0
            block.down.weight[:, : block.down.in_features // 2] = 0
        return
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer is not layers[0]:
            layer.weight[:, : layer.weight.shape[1] // 2] = 0
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm) and layer is not network.head:
            half = layer.weight.shape[0] // 2
            layer.weight[:half] = 0
            if layer.bias is not None:
                layer.bias[:half] = 0


def draw_statistics(network: nn.Module) -> None:
    """Batch normalisation as after some training, with a different scale for every channel."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for values in (layer.weight.data, layer.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (layer.bias.data, layer.running_mean):
                nn.init.normal_(values, std=0.1)


@pytest.mark.parametrize("name", PRUNABLE)
def test_what_gives_nothing_leaves_and_the_answers_stay_whatever_is_coupled(name):
    torch.manual_seed(0)
    blueprint = prunable_blueprint(name)
    network = build(blueprint).eval()
    draw_statistics(network)
    kill_first_half(network, blueprint.config.kind)
    smaller, pruned = prune(network, blueprint, 0.5)
    x = torch.randn(20, *blueprint.layout.shape)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), network(x), atol=1e-5, rtol=1e-4)
    assert num_parameters(smaller) < 0.8 * num_parameters(network)
    assert num_parameters(build(pruned)) == num_parameters(smaller)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", PRUNABLE)
def test_every_kind_can_be_pruned_twice_and_built_again(name, share):
    blueprint = prunable_blueprint(name)
    network = build(blueprint).eval()
    smaller, pruned = prune(*prune(network, blueprint, share), share)
    again = build(pruned).eval()
    again.load_state_dict(smaller.state_dict())
    x = torch.randn(5, *blueprint.layout.shape)
    with torch.no_grad():
        assert torch.equal(again(x), smaller(x))
        if share == 0:
            torch.testing.assert_close(smaller(x), network(x))
    assert (num_parameters(smaller) < num_parameters(network)) == (share > 0)


def test_a_kind_that_cannot_be_pruned_is_named():
    blueprint = Blueprint(
        config=HuggingFace(kind="huggingface", config={"model_type": "bert"}),
        layout=Layout(kind="tokens", shape=(5,), num_tokens=9),
        num_outputs=3,
    )
    with pytest.raises(RecipeInvalid, match="of kind huggingface"):
        prune(nn.Linear(5, 3), blueprint, 0.5)


@pytest.mark.parametrize(
    "config",
    [
        Rnn(kind="rnn", hidden=8, num_layers=2, bidirectional=True),
        Transformer(kind="transformer", width=8, num_heads=2),
        Gpt(kind="gpt", width=8, num_heads=2),
    ],
    ids=lambda config: config.kind,
)
def test_networks_for_sequences_are_pruned_and_built_again(config: Model):
    blueprint = Blueprint(config=config, layout=Layout(kind="tokens", shape=(5,), num_tokens=9), num_outputs=3)
    network = build(blueprint).eval()
    smaller, pruned = prune(network, blueprint, 0.5)
    assert num_parameters(build(pruned)) == num_parameters(smaller) < num_parameters(network)
    assert pruned.layout == blueprint.layout
