"""Structured pruning: smaller dense networks of the same kind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.obstacles import find_pruning_obstacle
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import Cnn, FtTransformer, HuggingFace, LeNet, Mlp, ResNet, Rnn
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.loop import evaluate

FLAT = Layout(kind="flat", shape=(6,))
IMAGE = Layout(kind="image", shape=(1, 24, 24))


def blueprint_of(channels: tuple[int, ...], hidden: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Blueprint:
    config = Cnn(kind="cnn", channels=channels, hidden=hidden)
    return Blueprint(
        config=config, layout=Layout(kind="image" if len(shape) == 3 else "flat", shape=shape), num_outputs=3
    )


@pytest.mark.parametrize(("ratio", "channels", "hidden"), [(0.25, (6, 12), 24), (0.5, (4, 8), 16), (0.75, (2, 4), 8)])
def test_the_ratio_of_channels_and_hidden_units_is_removed(trained, ratio, channels, hidden):
    network, blueprint = prune_network(trained.network, trained.blueprint, Pruning(ratio=ratio))
    assert (blueprint.config.channels, blueprint.config.hidden) == (channels, hidden)
    assert tuple(block[0].weight.shape[0] for block in network.blocks) == channels
    assert network.head.weight.shape == (10, hidden)
    assert num_parameters(network) < num_parameters(trained.network)
    assert not network.training


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize(
    ("fields", "channels", "hidden"),
    [
        ({"ratio": 0.45}, (16, 32, 64), 35),
        ({"ratio": 0.3}, (16, 48, 96), 44),
        ({"ratio": 0.1}, (32, 64, 112), 57),
        ({"ratio": 0.7}, (9, 16, 32), 19),  # widths below 16 are not rounded
        ({"ratio": 0.5, "rounds": 3}, (16, 32, 64), 30),  # each round keeps a whole number of units
        ({"target": {"macs": 0.3}}, (16, 32, 80), 39),
    ],
)
def test_round_to_keeps_multiples_of_channels(fields, importance, channels, hidden):
    blueprint = blueprint_of((32, 64, 128), 64, (1, 16, 16))
    rows = Examples(torch.randn(64, 1, 16, 16), torch.arange(64) % 3, np.arange(64))
    pruning = Pruning(**fields, importance=importance, round_to=16)
    network, pruned = prune_network(build_network(blueprint).eval(), blueprint, pruning, rows)
    assert pruned.config.channels == channels
    assert abs(pruned.config.hidden - hidden) <= 1
    build_network(pruned).load_state_dict(network.state_dict())


def test_round_to_needs_channels_and_local_scope():
    pruning = Pruning(ratio=0.5, round_to=16)
    assert find_pruning_obstacle(Cnn(kind="cnn"), pruning) is None
    assert "a mlp has no channels" in str(find_pruning_obstacle(Mlp(kind="mlp"), pruning))
    with pytest.raises(ValidationError, match="`round_to` needs `scope: layer`"):
        Pruning(ratio=0.5, round_to=16, scope="global")


def test_a_pruned_network_can_be_built_again_from_its_blueprint(trained, splits):
    network, blueprint = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5))
    rebuilt_network = build_network(blueprint).eval()
    rebuilt_network.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt_network(splits.test.x), network(splits.test.x))
    assert blueprint.layout == trained.blueprint.layout
    assert blueprint.config.dropout == trained.blueprint.config.dropout


def test_the_original_network_does_not_change(trained, splits):
    before = copy.deepcopy(trained.network.state_dict())
    blueprint = trained.blueprint.model_dump()
    network, _ = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5))
    with torch.no_grad():
        network.head.bias += 1
    assert all(torch.equal(before[name], value) for name, value in trained.network.state_dict().items())
    assert trained.blueprint.model_dump() == blueprint
    assert evaluate(trained.network, splits.test)[1] > 0.85


@pytest.mark.parametrize("is_training", [True, False])
def test_the_network_stays_in_its_mode(trained, is_training):
    source = copy.deepcopy(trained.network).train(is_training)
    prune_network(source, trained.blueprint, Pruning(ratio=0.5))
    assert source.training == is_training


def test_the_remaining_weights_are_those_of_the_original(trained):
    network, _ = prune_network(copy.deepcopy(trained.network).train(), trained.blueprint, Pruning(ratio=0.5))
    before_norm, after_norm = (module.blocks[0][1] for module in (trained.network, network))
    pairs = list(zip(before_norm.running_mean.tolist(), before_norm.weight.tolist(), strict=True))
    assert set(zip(after_norm.running_mean.tolist(), after_norm.weight.tolist(), strict=True)) < set(pairs)


def test_the_least_important_channels_and_units_are_removed_first():
    torch.manual_seed(0)
    blueprint = blueprint_of((6, 8), 10)
    network = build_network(blueprint).eval()
    dead_channels = {network.blocks[0]: [0, 2, 5], network.blocks[1]: [1, 2, 3, 7]}
    with torch.no_grad():
        for block, channels in dead_channels.items():
            block[0].weight[channels] = 0
            block[1].weight[channels] = 0
        network.blocks[1][0].weight[:, [0, 2, 5]] = 0
        network.hidden.weight[[0, 1, 4, 8, 9]] = 0
        network.hidden.bias[[0, 1, 4, 8, 9]] = 0
        network.hidden.weight.unflatten(1, (8, -1))[:, [1, 2, 3, 7]] = 0
        network.head.weight[:, [0, 1, 4, 8, 9]] = 0
    pruned_network, pruned = prune_network(network, blueprint, Pruning(ratio=0.5))
    x = torch.randn(20, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(pruned_network(x), network(x), atol=1e-5, rtol=1e-5)
    assert (pruned.config.channels, pruned.config.hidden) == ((3, 4), 5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (3, 28, 28)], ids=str)
def test_networks_for_images_of_any_size_can_be_pruned(shape):
    blueprint = blueprint_of((4, 6, 8), 12, shape)
    network, pruned = prune_network(build_network(blueprint), blueprint, Pruning(ratio=0.5))
    assert pruned.config.channels == (2, 3, 4)
    assert network(torch.randn(5, *shape)).shape == (5, 3)


def test_a_pruned_network_can_be_pruned_again(trained):
    pruned = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5))
    _, pruned_again = prune_network(*pruned, Pruning(ratio=0.5))
    assert (pruned_again.config.channels, pruned_again.config.hidden) == ((2, 4), 8)


@pytest.mark.parametrize("ratio", [0.5, 0.8, 0.9, 0.99])
def test_every_layer_shrinks_and_none_vanishes_with_a_large_ratio(ratio):
    blueprint = blueprint_of((4, 8), 16)
    _, pruned = prune_network(build_network(blueprint), blueprint, Pruning(ratio=ratio))
    widths = (*pruned.config.channels, pruned.config.hidden)
    assert all(
        1 <= width <= max(1, trained_width * 0.6) for width, trained_width in zip(widths, (4, 8, 16), strict=True)
    )


def test_a_network_of_single_channels_does_not_change():
    blueprint = blueprint_of((1,), 1)
    assert prune_network(build_network(blueprint), blueprint, Pruning(ratio=0.5))[1] == blueprint


PRUNABLE = {
    "cnn": (Cnn(kind="cnn", channels=(4, 6), convolutions=2, hidden=0), (1, 9, 8)),
    "strided cnn": (Cnn(kind="cnn", channels=(4, 6), convolutions=(1, 2), strided=1, hidden=8), (1, 9, 8)),
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
def zero_first_half(network: nn.Module, kind: str) -> None:
    """Zeroes the first half of the prunable outputs and the weights that read them."""
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
    """Gives batch normalisation statistics as after training, with a different scale for every channel."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for values in (layer.weight.data, layer.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (layer.bias.data, layer.running_mean):
                nn.init.normal_(values, std=0.1)


@pytest.mark.parametrize("name", PRUNABLE)
def test_removing_zero_outputs_keeps_the_outputs_of_coupled_layers(name):
    torch.manual_seed(0)
    blueprint = prunable_blueprint(name)
    network = build_network(blueprint).eval()
    draw_statistics(network)
    zero_first_half(network, blueprint.config.kind)
    pruned_network, pruned = prune_network(network, blueprint, Pruning(ratio=0.5))
    x = torch.randn(20, *blueprint.layout.shape)
    with torch.no_grad():
        torch.testing.assert_close(pruned_network(x), network(x), atol=1e-5, rtol=1e-4)
    assert num_parameters(pruned_network) < 0.8 * num_parameters(network)
    assert num_parameters(build_network(pruned)) == num_parameters(pruned_network)


@pytest.mark.parametrize("ratio", [0.3, 0.9])
@pytest.mark.parametrize("name", PRUNABLE)
def test_every_kind_of_network_can_be_pruned_twice_and_rebuilt(name, ratio):
    blueprint = prunable_blueprint(name)
    network = build_network(blueprint).eval()
    pruned_network, pruned = prune_network(
        *prune_network(network, blueprint, Pruning(ratio=ratio)), Pruning(ratio=ratio)
    )
    rebuilt_network = build_network(pruned).eval()
    rebuilt_network.load_state_dict(pruned_network.state_dict())
    x = torch.randn(5, *blueprint.layout.shape)
    with torch.no_grad():
        assert torch.equal(rebuilt_network(x), pruned_network(x))
    assert num_parameters(pruned_network) < num_parameters(network)


def test_the_pruned_network_has_the_configured_dropout(trained):
    network, blueprint = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5, dropout=0))
    assert (network.dropout.p, blueprint.config.dropout) == (0, 0)
    unchanged = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5))
    assert unchanged.network.dropout.p == trained.blueprint.config.dropout > 0


def test_a_kind_that_cannot_be_pruned_is_refused():
    blueprint = Blueprint(
        config=HuggingFace(kind="huggingface", config={"model_type": "bert"}),
        layout=Layout(kind="tokens", shape=(5,), num_tokens=9),
        num_outputs=3,
    )
    with pytest.raises(RecipeInvalid, match="of kind huggingface"):
        prune_network(nn.Linear(5, 3), blueprint, Pruning(ratio=0.5))


def test_taylor_importance_follows_the_loss_and_magnitude_the_norm():
    """The largest weights have no effect on the output, which only the gradient shows."""
    torch.manual_seed(0)
    blueprint = Blueprint(config=Mlp(kind="mlp", hidden=(8,), norm="none", dropout=0.0), layout=FLAT, num_outputs=2)
    network = build_network(blueprint).eval()
    with torch.no_grad():
        network.layers[0][0].weight[:4] *= 5
        network.head.weight[:, :4] = 0
    x = torch.randn(200, 6)
    rows = Examples(x, network(x).argmax(1), np.arange(200))
    by_norm = prune_network(network, blueprint, Pruning(ratio=0.5), rows).network
    by_loss = prune_network(network, blueprint, Pruning(ratio=0.5, importance="taylor"), rows).network
    first = network.layers[0][0].weight
    assert torch.equal(by_loss.layers[0][0].weight, first[4:])
    assert torch.equal(by_norm.layers[0][0].weight, first[:4])
    assert evaluate(by_loss, rows)[1] == 1.0
    assert all(weight.grad is None for weight in (*network.parameters(), *by_loss.parameters()))


def test_global_scope_prunes_less_important_layers_more():
    torch.manual_seed(0)
    blueprint = Blueprint(config=Mlp(kind="mlp", hidden=(16, 16), norm="none"), layout=FLAT, num_outputs=2)
    network = build_network(blueprint).eval()
    with torch.no_grad():
        network.layers[1][0].weight *= 0.01
        network.head.weight *= 0.01
    first, second = prune_network(network, blueprint, Pruning(ratio=0.4, scope="global")).blueprint.config.hidden
    assert second < first
    assert second >= 1


def test_several_rounds_remove_as_much_as_one_and_fine_tune_after_each(trained):
    round_counts = []
    network, blueprint = prune_network(
        trained.network,
        trained.blueprint,
        Pruning(ratio=0.75, rounds=2),
        fine_tune=lambda pruned_network, num_rounds: round_counts.append(num_rounds),
    )
    assert round_counts == [2, 2]
    assert blueprint.config.channels == (2, 4)
    assert network.training is False


@pytest.mark.parametrize(
    ("config", "pruning", "message"),
    [
        (Rnn(kind="rnn"), {"structures": ["heads"]}, "a rnn has no heads to remove"),
        (ResNet(kind="resnet"), {"scope": "global"}, "use `scope: layer`"),
        (Cnn(kind="cnn", convolutions=2), {"scope": "global"}, "use `scope: layer`"),
        (Cnn(kind="cnn", convolutions=(1, 2)), {"scope": "global"}, "use `scope: layer`"),
        (LeNet(kind="lenet"), {"dropout": 0.1}, "a lenet has no dropout"),
    ],
)
def test_structures_that_a_kind_lacks_are_refused(config, pruning, message):
    full_pruning = Pruning.model_validate({"ratio": 0.5, **pruning})
    assert message in (find_pruning_obstacle(config, full_pruning) or "")
    blueprint = Blueprint(config=config, layout=IMAGE, num_outputs=3)
    with pytest.raises(RecipeInvalid, match=message.replace("`", ".")):
        prune_network(nn.Linear(2, 2), blueprint, full_pruning)


@pytest.mark.parametrize("fields", [{}, {"ratio": 0.5, "target": {"macs": 0.5}}, {"target": {}}])
def test_a_ratio_or_a_target_is_required(fields):
    with pytest.raises(ValidationError):
        Pruning.model_validate(fields)
