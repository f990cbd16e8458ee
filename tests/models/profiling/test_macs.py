"""Multiply-accumulate operations of networks."""

from __future__ import annotations

import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Rnn
from bloomery.models.profiling.macs import count_macs

TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_macs_of_a_recurrent_layer_count_every_step(cell):
    config = Rnn(kind="rnn", cell=cell, hidden=32, embedding=48, num_layers=2, bidirectional=True)
    network = build_network(Blueprint(config=config, layout=TOKENS, num_outputs=3))
    weights = sum(weight.numel() for name, weight in network.layers.named_parameters() if "weight" in name)
    # Biases, activations and the head are a tenth more.
    assert 1 < count_macs(network, torch.ones(2, 9)) / (9 * weights) < 1.1
