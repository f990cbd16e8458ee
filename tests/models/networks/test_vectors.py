"""The vectors of a checkpoint are its pooled states, without a head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network, read_network, write_network
from bloomery.models.networks.config import Model, vector_width
from bloomery.models.networks.pretrained_config import Pretrained

pytest.importorskip("transformers")


def config_of(folder: Path) -> Pretrained:
    checkpoint = Checkpoint(reference="tiny", folder=str(folder), files={"model.safetensors": "0" * 64})
    config = json.loads((folder / "config.json").read_text())
    return Pretrained(kind="pretrained", checkpoint="tiny", pooling="mean", resolved=checkpoint, config=config)


def test_a_checkpoint_has_no_head_and_stays_as_it_is(tiny_bert, tmp_path):
    config = config_of(tiny_bert)
    layout = Layout(kind="tokens", shape=(8,), num_tokens=config.config["vocab_size"] + 1)
    width = vector_width(config)
    assert width == 32
    blueprint = Blueprint(config=config, layout=layout, task="embedding", num_outputs=width)
    network = build_network(blueprint).eval()
    assert not [name for name, _ in network.named_parameters() if name.startswith("head")]
    x = torch.tensor([[3, 20, 30, 4, 0, 0, 0, 0], [3, 21, 4, 0, 0, 0, 0, 0]]).float()
    vectors = network(x)
    assert vectors.shape == (2, width)
    torch.testing.assert_close(vectors, network.embed(x))
    write_network(network, blueprint, tmp_path / "weights.safetensors", tmp_path / "network.json")
    stored, _ = read_network(tmp_path / "weights.safetensors", tmp_path / "network.json")
    torch.testing.assert_close(stored(x), vectors)


@pytest.mark.parametrize(
    ("document", "width"),
    [
        ({"kind": "transformer", "width": 64}, 64),
        ({"kind": "rnn", "hidden": 20, "bidirectional": True}, 40),
        ({"kind": "mlp"}, None),
        ({"kind": "pretrained", "checkpoint": "x"}, None),
        ({"kind": "pretrained", "checkpoint": "x", "config": {"n_embd": 48}}, 48),
    ],
)
def test_widths_of_vectors(document: dict[str, Any], width: int | None):
    assert vector_width(TypeAdapter(Model).validate_python(document)) == width
