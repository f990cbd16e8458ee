"""Pruning to a cost target: MACs, parameters or latency."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.cost_target import relative_cost
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import Cnn, Mlp, Rnn
from bloomery.models.training.data.batches import Examples

FLAT = Layout(kind="flat", shape=(6,))
IMAGE = Layout(kind="image", shape=(1, 24, 24))
TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)


@pytest.mark.parametrize("target", [{"macs": 0.3}, {"parameters": 0.4}])
@pytest.mark.parametrize("config", [Rnn(kind="rnn", hidden=32), Mlp(kind="mlp", hidden=(64, 64))], ids=lambda c: c.kind)
def test_the_ratio_reaches_the_cost_target(config, target):
    layout = TOKENS if config.kind == "rnn" else FLAT
    blueprint = Blueprint(config=config, layout=layout, num_outputs=3)
    network = build_network(blueprint).eval()
    x = torch.randint(1, 20, (8, *layout.shape)).float()
    rows = Examples(x, torch.arange(8) % 3, np.arange(8))
    pruned_network = prune_network(network, blueprint, Pruning(target=target), rows).network
    ((cost, max_share),) = target.items()
    with relative_cost(cost, network, x) as measure:
        assert max_share - 0.1 < measure(pruned_network) <= max_share


def test_the_number_of_rounds_changes_neither_rounded_widths_nor_the_target():
    blueprint = Blueprint(config=Cnn(kind="cnn", channels=(32, 64), hidden=0), layout=IMAGE, num_outputs=3)
    network = build_network(blueprint).eval()
    rows = Examples(torch.randn(8, 1, 24, 24), torch.arange(8) % 3, np.arange(8))
    for pruning in ({"ratio": 0.2}, {"ratio": 0.3}, {"target": {"parameters": 0.5}}):
        at_once, in_rounds = (
            prune_network(network, blueprint, Pruning(**pruning, round_to=16, rounds=rounds), rows) for rounds in (1, 3)
        )
        assert in_rounds.blueprint == at_once.blueprint
        assert all(width % 16 == 0 for width in in_rounds.blueprint.config.channels)
    assert num_parameters(in_rounds.network) <= 0.5 * num_parameters(network)


def test_a_latency_target_is_reached_as_measured(monkeypatch):
    """The clock is simulated: it advances by the weights of the network that runs. `benchmarks/` measure real time."""
    clock = 0

    def run_batch(path, *_):
        nonlocal clock
        clock += path.stat().st_size

    monkeypatch.setattr(
        "bloomery.models.compression.pruning.cost_target.export_onnx",
        lambda network, x, path: path.write_bytes(weights_of(network)),
    )
    monkeypatch.setattr("bloomery.models.profiling.latency.create_session", lambda path, device: path)
    monkeypatch.setattr("bloomery.models.profiling.latency.run_batch", run_batch)
    monkeypatch.setattr("bloomery.models.profiling.latency.time.perf_counter", lambda: clock)
    blueprint = Blueprint(config=Cnn(kind="cnn", channels=(32, 128), hidden=0), layout=IMAGE, num_outputs=3)
    network = build_network(blueprint).eval()
    rows = Examples(torch.randn(32, 1, 24, 24), torch.arange(32) % 3, np.arange(32))
    pruned = prune_network(network, blueprint, Pruning(target={"latency": 0.5}), rows)
    assert 0.4 < num_parameters(pruned.network) / num_parameters(network) <= 0.5


def weights_of(network):
    return bytes(num_parameters(network))


def test_the_latency_is_that_of_the_exported_network():
    network = build_network(
        Blueprint(config=Mlp(kind="mlp", hidden=(4,), norm="none"), layout=FLAT, num_outputs=2)
    ).eval()
    with relative_cost("latency", network, torch.randn(8, 6)) as cost:
        assert cost(network) > 0


def test_an_unreachable_target_is_refused():
    blueprint = Blueprint(config=Mlp(kind="mlp", hidden=(4,), norm="none"), layout=FLAT, num_outputs=2)
    rows = Examples(torch.randn(8, 6), torch.arange(8) % 2, np.arange(8))
    with pytest.raises(RecipeInvalid, match="pruned as far as possible, the macs are"):
        prune_network(build_network(blueprint).eval(), blueprint, Pruning(target={"macs": 0.01}), rows)
