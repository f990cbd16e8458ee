"""Pretrained branches of a fused network lose tokens, layers, heads and units; all else stays."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.compression.branches import change_pretrained_branches
from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import CandidateSpec, Compression
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.compression.obstacles import (
    find_compression_obstacle,
    find_layer_obstacle,
    find_pruning_obstacle,
    find_vocabulary_obstacle,
)
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.vocabulary import measure_removed_tokens
from bloomery.models.networks.architectures.fused import FusedNetwork
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.body_layers import measure_shape
from bloomery.models.networks.config import Fused
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples
from tests.checkpoints import CheckpointFolder
from tests.models.compression.pretrained_networks import LENGTH, random_tokens

_ROWS = 40


@pytest.fixture(scope="module")
def fused(checkpoint_folder: CheckpointFolder) -> tuple[FusedNetwork, Blueprint, torch.Tensor]:
    bert, vit = (_branch(checkpoint_folder, name) for name in ("bert", "vit"))
    num_tokens = bert["config"]["vocab_size"]
    layout = mixed_layout(
        [
            Part(name="table", layout=Layout(kind="flat", shape=(4,))),
            Part(name="note", layout=Layout(kind="tokens", shape=(LENGTH,), num_tokens=num_tokens + 1)),
            Part(name="photo", layout=Layout(kind="image", shape=(3, 16, 16)), is_optional=True),
        ]
    )
    branches = {"table": {"kind": "mlp", "hidden": [8]}, "note": bert, "photo": vit}
    config = Fused.model_validate({"kind": "fused", "width": 8, "branches": branches})
    blueprint = Blueprint(config=config, layout=layout, num_outputs=3)
    torch.manual_seed(0)
    network = build_network(blueprint)
    x = torch.randn(_ROWS, *layout.shape)
    x[:, 4 : 4 + LENGTH] = random_tokens(_ROWS, num_tokens)
    x[:, -1] = (torch.rand(_ROWS) > 0.3).float()
    assert isinstance(network, FusedNetwork)
    return network.eval(), blueprint, x


def _branch(checkpoint_folder: CheckpointFolder, name: str) -> dict[str, object]:
    folder = checkpoint_folder(name)
    resolved = Checkpoint(reference=name, folder=str(folder), files={})
    return {
        "kind": "pretrained",
        "checkpoint": name,
        "resolved": resolved.model_dump(),
        "config": json.loads((folder / "config.json").read_text()),
    }


def _compress(fused, tokenizers: Mapping[str, str], **steps) -> FusedNetwork:
    network, blueprint, x = fused
    rows = Examples(x, torch.arange(_ROWS) % 3, np.arange(_ROWS))
    compression = Compression(fine_tune=Loop(epochs=1, batch_size=16, learning_rate=1e-9))
    tuning = FineTuning(rows, rows, network, compression, tokenizers=tokenizers)
    return compress_network(network, blueprint, CandidateSpec(name="smaller", **steps), tuning)


def test_a_trimmed_branch_keeps_the_outputs_of_rows(fused, checkpoint_folder: CheckpointFolder):
    network, _, x = fused
    tokenizer = (checkpoint_folder("bert") / "tokenizer.json").read_text()
    trimmed = _compress(fused, {"note": tokenizer}, trim_vocabulary=1)
    assert num_parameters(trimmed) < num_parameters(network)
    with torch.no_grad():
        torch.testing.assert_close(trimmed(x), network(x))
    assert measure_removed_tokens(network, x) == 0
    assert measure_removed_tokens(trimmed, x) == 0
    kept = trimmed.branches[1].body.get_input_embeddings().tokens.tolist()
    unseen, removed = x.clone(), next(token for token in range(100) if token not in kept)
    unseen[:, 4 : 4 + LENGTH] = torch.where(x[:, 4 : 4 + LENGTH] > 0, removed + 1.0, 0.0)
    assert measure_removed_tokens(trimmed, unseen) == 1


def test_branches_lose_layers_as_they_do_by_themselves(fused):
    network, _, x = fused
    student = _compress(fused, {}, student={"layers": [1], "training": {"epochs": 1, "learning_rate": 1e-9}})
    for branch, trained in zip(student.branches[1:], network.branches[1:], strict=True):
        assert measure_shape(branch.body).heads == measure_shape(trained.body).heads[1:]
    assert student.branches[0].state_dict().keys() == network.branches[0].state_dict().keys()
    assert student(x).shape == (_ROWS, 3)


def test_removed_units_and_heads_of_branches_count_as_zero(fused):
    network, blueprint, x = fused
    blank = build_network(blueprint)
    blank.load_state_dict(network.state_dict())
    blank.eval()
    maps = [(layer.output.dense, layer.intermediate.dense) for layer in blank.branches[1].body.encoder.layer]
    maps += [(layer.mlp.fc2, layer.mlp.fc1) for layer in blank.branches[2].body.layers]
    attention = [(layer.attention.self, layer.attention.output.dense) for layer in blank.branches[1].body.encoder.layer]
    with torch.no_grad():
        for down, up in maps:
            down.weight[:, ::2], up.weight[::2], up.bias[::2] = 0, 0, 0
        for projections, out in attention:
            out.weight[:, :16] = 0
            for layer in (projections.query, projections.key, projections.value):
                layer.weight[:16], layer.bias[:16] = 0, 0
        for layer in blank.branches[2].body.layers:
            layer.attention.o_proj.weight[:, :16] = 0
            for projection in (layer.attention.q_proj, layer.attention.k_proj, layer.attention.v_proj):
                projection.weight[:16], projection.bias[:16] = 0, 0
        pruning = CandidateSpec(name="a", prune={"ratio": 0.5, "structures": ["units", "heads"]}).prune
        pruned, smaller = prune_network(blank, blueprint, pruning)
        torch.testing.assert_close(pruned(x), blank(x))
    assert [branch.shape.heads for branch in list(smaller.config.branches.values())[1:]] == [(1, 1), (1, 1)]
    assert smaller.config.branches["table"] == blueprint.config.branches["table"]


def test_a_branch_that_cannot_change_keeps_its_weights(fused):
    network, blueprint, x = fused
    unchanged, same = change_pretrained_branches(network, blueprint, lambda config: "cannot", lambda branch: branch[:2])
    assert same == blueprint
    with torch.no_grad():
        assert torch.equal(unchanged(x), network(x))
    assert isinstance(unchanged.branches[1], PretrainedNetwork)


def test_what_no_branch_supports_has_a_reason():
    vit = {"kind": "pretrained", "checkpoint": "vit", "config": {"model_type": "vit", "num_hidden_layers": 4}}
    resnet = {"kind": "pretrained", "checkpoint": "resnet", "config": {"model_type": "resnet"}}
    images = Fused(kind="fused", branches={"photo": vit, "table": {"kind": "mlp"}})
    stages = Fused(kind="fused", branches={"photo": resnet, "table": {"kind": "mlp"}})
    assert "photo: the network has no vocabulary" in find_vocabulary_obstacle(images)
    sound = {**vit, "config": {"model_type": "wav2vec2", "num_hidden_layers": 4, "vocab_size": 32}}
    recordings = Fused(kind="fused", branches={"voice": sound, "table": {"kind": "mlp"}})
    assert "voice: the network has no vocabulary" in find_vocabulary_obstacle(recordings)
    assert find_layer_obstacle(images, 3) is None
    assert "has 4 layers" in find_layer_obstacle(images, 5)
    assert "photo: the stages of resnet differ" in find_layer_obstacle(stages, 2)
    assert find_pruning_obstacle(images, CandidateSpec(name="a", prune=0.5).prune) is None
    for obstacle in (find_vocabulary_obstacle, lambda model: find_layer_obstacle(model, 2)):
        assert "default branches" in obstacle(Fused(kind="fused"))
    assert find_compression_obstacle("fused", CandidateSpec(name="a", student={"layers": 2})) is None


def test_the_default_candidates_of_a_pretrained_branch_are_those_of_the_checkpoint():
    bert = Pretrained(
        kind="pretrained",
        checkpoint="bert",
        config={"model_type": "bert", "num_hidden_layers": 6, "vocab_size": 100},
    )
    model = Fused(kind="fused", branches={"note": bert, "table": {"kind": "mlp"}})
    names = [spec.name for spec in default_candidates("fused", pretrained=model)]
    assert names == ["fp32", "int8", "trimmed-int8", "pruned-int8", "student-int8"]
    assert len(default_candidates("fused")) == 4
