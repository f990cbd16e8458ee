"""Structured pruning of recurrent networks and Transformers: units, heads and layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import Gpt, Model, Rnn, Transformer
from bloomery.models.training.data.batches import Examples

TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)
DEEP = {"width": 16, "num_heads": 4, "num_layers": 4, "feed_forward": 2.0, "dropout": 0.0}


@pytest.mark.parametrize(
    "config",
    [
        Rnn(kind="rnn", hidden=8, num_layers=2, bidirectional=True),
        Transformer(kind="transformer", width=8, num_heads=2),
        Gpt(kind="gpt", width=8, num_heads=2),
    ],
    ids=lambda config: config.kind,
)
def test_networks_for_sequences_are_pruned_and_rebuilt(config: Model):
    blueprint = Blueprint(config=config, layout=Layout(kind="tokens", shape=(5,), num_tokens=9), num_outputs=3)
    network = build_network(blueprint).eval()
    pruned_network, pruned = prune_network(network, blueprint, Pruning(ratio=0.5))
    assert num_parameters(build_network(pruned)) == num_parameters(pruned_network) < num_parameters(network)
    assert pruned.layout == blueprint.layout


def deep_network(kind: type[Transformer] | type[Gpt]) -> tuple[nn.Module, Blueprint]:
    torch.manual_seed(0)
    config = kind.model_validate({"kind": kind.__name__.lower(), **DEEP})
    blueprint = Blueprint(config=config, layout=TOKENS, num_outputs=3)
    return build_network(blueprint).eval(), blueprint


@pytest.mark.parametrize("kind", [Transformer, Gpt])
def test_removing_heads_and_layers_without_effect_keeps_the_outputs(kind):
    network, blueprint = deep_network(kind)
    with torch.no_grad():
        for number, block in enumerate(network.blocks):
            if number in (0, 2):  # layers without effect
                for weight in block.parameters():
                    weight.zero_()
            for head in (1, 3):
                columns = slice(4 * head, 4 * head + 4)
                block.attention.out.weight[:, columns] = 0
                for layer in (block.attention.query, block.attention.key, block.attention.value):
                    layer.weight[columns], layer.bias[columns] = 0, 0
    pruned_network, pruned = prune_network(network, blueprint, Pruning(ratio=0.5, structures=("heads", "layers")))
    assert (pruned.config.num_layers, pruned.config.num_heads, pruned.config.head_width) == (2, 2, 4)
    assert pruned.config.feed_forward == 2.0
    x = torch.randint(1, 20, (5, 9)).float()
    torch.testing.assert_close(pruned_network(x), network(x), atol=1e-5, rtol=1e-4)
    rebuilt_network = build_network(pruned).eval()
    rebuilt_network.load_state_dict(pruned_network.state_dict())
    assert torch.equal(rebuilt_network(x), pruned_network(x))
    assert len(network.blocks) == 4


@pytest.mark.parametrize("config", [Rnn(kind="rnn", cell="gru", hidden=8), Rnn(kind="rnn", cell="elman", hidden=8)])
def test_gradients_reach_recurrent_and_attention_layers(config):
    torch.manual_seed(0)
    blueprint = Blueprint(config=config, layout=TOKENS, num_outputs=3)
    rows = Examples(torch.randint(1, 20, (40, 9)).float(), torch.arange(40) % 3, np.arange(40))
    pruned_network, pruned = prune_network(
        build_network(blueprint).eval(), blueprint, Pruning(ratio=0.5, importance="taylor"), rows
    )
    assert pruned.config.hidden == 4
    assert pruned_network(rows.x).shape == (40, 3)
