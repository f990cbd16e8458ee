"""Pretrained and recurrent branches: weights, freezing, pruning and files of a fused network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.compression.obstacles import find_pruning_obstacle
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.architectures.fused import FusedNetwork
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters, read_network, write_network
from bloomery.models.networks.config import Custom, Fused
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.layer_freezing import freeze_parameters, layer_groups

LENGTH = 10
BRANCHES = {
    "table": {"kind": "mlp", "hidden": [16], "dropout": 0},
    "steps": {"kind": "rnn", "hidden": 8, "dropout": 0},
    "photo": {"kind": "cnn", "channels": [8], "hidden": 8, "dropout": 0},
}


class TinyFused(NamedTuple):
    network: FusedNetwork
    blueprint: Blueprint
    examples: Examples


@pytest.fixture(scope="module")
def tiny(tiny_bert: Path) -> TinyFused:
    document = json.loads((tiny_bert / "config.json").read_text())
    bert = Pretrained(
        kind="pretrained",
        checkpoint=str(tiny_bert),
        dropout=0,
        resolved=Checkpoint(reference=str(tiny_bert), folder=str(tiny_bert), files={}),
        config=document,
    )
    parts = [
        Part(name="table", layout=Layout(kind="flat", shape=(3,))),
        Part(
            name="text",
            layout=Layout(kind="tokens", shape=(LENGTH,), num_tokens=document["vocab_size"] + 1),
            is_optional=True,
        ),
        Part(name="steps", layout=Layout(kind="sequence", shape=(4, 3), is_padded=True)),
        Part(name="photo", layout=Layout(kind="image", shape=(1, 4, 4))),
    ]
    layout = mixed_layout(parts)
    config = Fused.model_validate({"kind": "fused", "width": 8, "dropout": 0, "branches": {"text": bert, **BRANCHES}})
    blueprint = Blueprint(config=config, layout=layout, num_outputs=2)
    torch.manual_seed(0)
    x = torch.randn(48, *layout.shape)
    lengths = torch.randint(1, LENGTH - 2, (48, 1))
    tokens = torch.randint(1, document["vocab_size"], (48, LENGTH)).float() * (torch.arange(LENGTH) < lengths)
    x[:, 3 : 3 + LENGTH] = tokens
    x[:, 3 + LENGTH] = (torch.arange(48) % 4 != 0).float()
    x[:, 14:26].view(-1, 4, 3)[..., -1] = 1
    network = build_network(blueprint).eval()
    return TinyFused(network, blueprint, Examples(x, torch.arange(48) % 2, np.arange(48)))


def test_a_branch_starts_from_its_checkpoint(tiny: TinyFused, tiny_bert: Path):
    from safetensors.torch import load_file

    weights = load_file(tiny_bert / "model.safetensors")
    body = {name.removeprefix("bert."): tensor for name, tensor in weights.items()}
    state = tiny.network.state_dict()
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(state[f"branches.1.body.{name}"], body[name])


def test_written_networks_need_no_checkpoint(tiny: TinyFused, tmp_path: Path):
    write_network(tiny.network, tiny.blueprint, tmp_path / "w", tmp_path / "b")
    assert "folder" not in (tmp_path / "b").read_text()
    restored, _ = read_network(tmp_path / "w", tmp_path / "b")
    with torch.no_grad():
        assert torch.equal(restored(tiny.examples.x), tiny.network(tiny.examples.x))


def test_every_branch_is_pruned_by_its_own_kind(tiny: TinyFused):
    for pruning in (Pruning(ratio=0.5), Pruning(ratio=0.5, importance="taylor")):
        network, blueprint = prune_network(tiny.network, tiny.blueprint, pruning, tiny.examples)
        branches = blueprint.config.branches
        assert branches["table"].hidden == (8,)
        assert branches["steps"].hidden == 4
        assert (branches["photo"].channels, branches["photo"].hidden) == ((4,), 4)
        shape = branches["text"].shape
        assert [units * 2 for units in shape.units] == [
            tiny.blueprint.config.branches["text"].config["intermediate_size"]
        ] * 2
        assert num_parameters(network) < num_parameters(tiny.network)
        with torch.no_grad():
            assert torch.isfinite(network(tiny.examples.x)).all()


def test_branches_without_a_structure_stay(tiny: TinyFused):
    _, blueprint = prune_network(tiny.network, tiny.blueprint, Pruning(ratio=0.5, structures=("layers",)))
    branches = blueprint.config.branches
    assert len(branches["text"].shape.heads) == 1
    assert branches["table"].hidden == (16,)
    rounded = Pruning(ratio=0.5, round_to=2)
    _, blueprint = prune_network(tiny.network, tiny.blueprint, rounded)
    assert (blueprint.config.branches["photo"].channels, blueprint.config.branches["table"].hidden) == ((4,), (16,))


def test_pruning_needs_a_branch_that_can_be_pruned():
    custom = Custom(kind="custom", function="mine:network")
    fused = Fused(kind="fused", branches={"table": custom})
    assert "no branch can be: table: a network of kind custom cannot be pruned" in str(
        find_pruning_obstacle(fused, Pruning(ratio=0.5))
    )
    assert find_pruning_obstacle(Fused(kind="fused"), Pruning(ratio=0.5)) is None


def test_one_file_has_the_recurrent_the_pretrained_and_the_other_branches(tiny: TinyFused, tmp_path: Path):
    x = tiny.examples.x
    export_onnx(tiny.network, x, tmp_path / "fused.onnx")
    with torch.no_grad():
        expected = tiny.network(x).numpy()
    session = create_session(tmp_path / "fused.onnx")
    assert [value.name for value in session.get_inputs()] == ["table", "text", "text.present", "steps", "photo"]
    np.testing.assert_allclose(run_session(session, x.numpy()), expected, atol=TOLERANCE)
    assert fuse_attention(tmp_path / "fused.onnx", tmp_path / "attention.onnx")
    quantize(tmp_path / "attention.onnx", tmp_path / "int8.onnx", x.numpy(), QuantizationOptions(mode="dynamic"))
    difference = run_session(create_session(tmp_path / "int8.onnx"), x.numpy()) - expected
    assert np.abs(difference).max() < 0.2


def test_the_layers_of_a_fused_network_are_those_of_its_checkpoint(tiny: TinyFused):
    embeddings, *layers, head = layer_groups(tiny.network)
    assert len(layers) == 2
    assert all(name.startswith("branches.1.body.embeddings.") for name in embeddings)
    assert {name for name, _ in tiny.network.named_parameters()} == {*embeddings, *layers[0], *layers[1], *head}
    assert {name.split(".body.")[0] for name in head if name.startswith("branches.")} >= {"branches.1.head.weight"}


def test_the_body_of_a_fused_network_can_be_frozen(tiny: TinyFused):
    torch.manual_seed(0)
    network = build_network(tiny.blueprint)
    freeze_parameters(network, ("body",))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.startswith("branches.1.body.") for name in frozen)
    x, y, _ = tiny.examples
    F.cross_entropy(network(x), y).backward()
    assert all(parameter.grad is not None for parameter in network.join.parameters())
