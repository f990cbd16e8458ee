"""Removal of units without incoming or outgoing weights."""

from __future__ import annotations

import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.pruning.dead_units import remove_dead_units
from bloomery.models.compression.pruning.unstructured import compute_masks, fixed_masks
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import Cnn, LeNet, Mlp, Rnn

IMAGE = Layout(kind="image", shape=(1, 16, 16))


@pytest.mark.parametrize(
    "config",
    [
        Mlp(kind="mlp", hidden=(40, 30), norm="none", dropout=0.0),
        LeNet(kind="lenet", channels=(6, 8), hidden=40),
        Cnn(kind="cnn", channels=(8, 8), hidden=20),
    ],
)
def test_units_without_outgoing_weights_are_removed_and_outputs_stay(config):
    torch.manual_seed(0)
    blueprint = Blueprint(config=config, layout=IMAGE, num_outputs=5)
    network = build_network(blueprint).eval()
    with torch.no_grad():
        network.head.weight[:, ::2] = 0
    smaller, pruned = remove_dead_units(network, blueprint)
    assert smaller.head.in_features == network.head.in_features // 2
    assert num_parameters(smaller) < num_parameters(network)
    x = torch.randn(4, 1, 16, 16)
    assert torch.allclose(network(x), smaller(x), atol=1e-5)
    build_network(pruned).load_state_dict(smaller.state_dict())


def test_a_unit_is_removed_after_its_last_reader():
    blueprint = Blueprint(config=LeNet(kind="lenet", channels=(4, 6), hidden=10), layout=IMAGE, num_outputs=5)
    network = build_network(blueprint).eval()
    with torch.no_grad():
        # Hidden units 3 to 9 have no outgoing weights, and only they read channels from 2 on.
        network.head.weight[:, 3:] = 0
        network.hidden.weight[:3, 2:] = 0
        network.second.weight[:2, 1:] = 0
    _, pruned = remove_dead_units(network, blueprint)
    assert pruned.config == LeNet(kind="lenet", channels=(1, 2), hidden=3)


def test_a_layer_keeps_one_unit_and_the_network_does_not_change():
    blueprint = Blueprint(config=Mlp(kind="mlp", hidden=(8,), norm="none"), layout=IMAGE, num_outputs=5)
    network = build_network(blueprint).eval()
    with fixed_masks(network, {"head.weight": torch.zeros(5, 8, dtype=torch.bool)}):
        smaller, pruned = remove_dead_units(network, blueprint)
    assert pruned.config.hidden == (1,)
    assert network.head.weight.shape == (5, 8)
    assert torch.allclose(smaller(torch.ones(1, 1, 16, 16)), network.head.bias)


def test_networks_without_dead_units_and_other_kinds_do_not_change():
    blueprint = Blueprint(config=Mlp(kind="mlp", hidden=(8, 6)), layout=IMAGE, num_outputs=5)
    network = build_network(blueprint)
    assert remove_dead_units(network, blueprint)[1] == blueprint
    sequence = Layout(kind="sequence", shape=(8, 2))
    recurrent = Blueprint(config=Rnn(kind="rnn", hidden=4), layout=sequence, num_outputs=3)
    source = build_network(recurrent)
    with fixed_masks(source, compute_masks(source, 0.05)):
        assert remove_dead_units(source, recurrent) == (source, recurrent)
