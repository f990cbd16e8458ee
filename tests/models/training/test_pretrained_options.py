"""Freezing, adapters and self-supervised stages of networks with a pretrained body."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.networks.architectures.fused import FusedNetwork
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Fused
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Training
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.layer_freezing import freeze_parameters, rate_shares
from bloomery.models.training.loop import Placement, TrainingHooks
from bloomery.models.training.lora import add_adapters, merge_adapters
from bloomery.models.training.pretraining import MaskedTokens, find_tokens
from bloomery.models.training.stage_setup import stage_setup
from bloomery.models.training.stages import train_in_stages
from bloomery.models.training.transfer_config import Lora

pytest.importorskip("transformers")


def blueprint_of(folder: Path) -> Blueprint:
    document = json.loads((folder / "config.json").read_text())
    checkpoint = Checkpoint(reference="tiny", folder=str(folder), files={"model.safetensors": "0" * 64})
    config = Pretrained(kind="pretrained", checkpoint="tiny", resolved=checkpoint, config=document)
    layout = Layout(kind="tokens", shape=(8,), num_tokens=document["vocab_size"] + 1)
    return Blueprint(config=config, layout=layout, num_outputs=3)


def texts(num_rows: int, num_tokens: int, seed: int = 0) -> Examples:
    """Each text has the tokens 3 (CLS) and 4 (SEP) of BERT around a repeated pair, and padding."""
    random = torch.Generator().manual_seed(seed)
    pair = torch.randint(7, num_tokens, (num_rows, 2), generator=random)
    ends = torch.ones(num_rows, 1, dtype=torch.int64)
    x = torch.cat([3 * ends, pair, pair, 4 * ends, 0 * ends, 0 * ends], 1).float()
    return Examples(x, pair[:, 0] % 3, np.arange(num_rows))


@pytest.mark.parametrize(
    ("freeze", "trainable"),
    [
        (("embeddings",), {"body.encoder", "head"}),
        (1, {"body.encoder.layer.1", "head"}),
        (2, {"head"}),
        (("body",), {"head"}),
        (("body.encoder.layer.0", "body.embeddings"), {"body.encoder.layer.1", "head"}),
    ],
)
def test_embeddings_layers_and_the_body_of_a_checkpoint_are_frozen(tiny_bert: Path, freeze, trainable):
    network = build_network(blueprint_of(tiny_bert))
    freeze_parameters(network, freeze)
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert names
    assert names == {
        name for name, _ in network.named_parameters() if any(name.startswith(prefix) for prefix in trainable)
    }


def test_the_top_layer_of_a_checkpoint_without_a_head_has_the_whole_rate(tiny_bert: Path):
    network = build_network(blueprint_of(tiny_bert).model_copy(update={"task": "embedding"}))
    shares = rate_shares(network, 0.5)
    assert shares["body.encoder.layer.1.output.dense.weight"] == 1
    assert shares["body.embeddings.word_embeddings.weight"] == 0.25
    with pytest.raises(RecipeInvalid, match="the network has no head, so `body` is all of it") as failure:
        freeze_parameters(network, ("body",))
    assert "epochs: 0" in failure.value.remedy


def fused_network() -> FusedNetwork:
    """A network with an MLP and a transformer of two layers as its branches."""
    parts = [
        Part(name="table", layout=Layout(kind="flat", shape=(2,))),
        Part(name="text", layout=Layout(kind="tokens", shape=(8,), num_tokens=20)),
    ]
    text = {"kind": "transformer", "width": 8, "num_heads": 2, "num_layers": 2}
    config = Fused.model_validate({"kind": "fused", "width": 8, "branches": {"table": {"kind": "mlp"}, "text": text}})
    network = build_network(Blueprint(config=config, layout=mixed_layout(parts), num_outputs=2))
    assert isinstance(network, FusedNetwork)
    return network


def trainable_prefixes(network: nn.Module) -> set[str]:
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    return {".".join(name.split(".")[:3]) for name in names}


def test_the_body_of_a_network_of_branches_is_that_of_its_pretrained_branch(tiny_bert: Path):
    network = fused_network()
    network.branches[1] = build_network(blueprint_of(tiny_bert))
    freeze_parameters(network, ("body",))
    assert "branches.1.body" not in trainable_prefixes(network)
    assert {"branches.0.layers", "branches.1.head", "join.head.weight"} <= trainable_prefixes(network)
    shares = rate_shares(network, 0.5)
    assert shares["branches.0.layers.0.0.weight"] == shares["join.head.weight"] == 1
    assert shares["branches.1.body.encoder.layer.0.output.dense.weight"] == 0.25


def test_layers_of_equal_depth_in_branches_are_frozen_together():
    network = fused_network()
    freeze_parameters(network, 1)
    names = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert any(name.startswith("branches.1.blocks.0.") for name in names)
    assert any(name.startswith("branches.0.layers.0.") for name in names)
    assert not any(name.startswith(("branches.1.blocks.1.", "branches.1.head", "join.")) for name in names)


def test_each_layer_of_a_checkpoint_has_a_rate_of_its_own(tiny_bert: Path):
    shares = rate_shares(build_network(blueprint_of(tiny_bert)), 0.5)
    assert shares["head.weight"] == 1
    assert shares["body.encoder.layer.1.output.dense.weight"] == 0.5
    assert shares["body.encoder.layer.0.output.dense.bias"] == 0.25
    assert shares["body.embeddings.word_embeddings.weight"] == 0.125


def test_adapters_of_a_checkpoint_are_read_by_peft_for_the_checkpoint_alone(tiny_bert: Path, tmp_path: Path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    network = build_network(blueprint_of(tiny_bert))
    adapted = add_adapters(network, Lora(rank=2, targets=("query", "attention.output.dense")))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    adapter = merge_adapters(adapted, network)
    adapter.write(tmp_path)
    assert adapter.num_layers == 4
    loaded = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(tiny_bert), str(tmp_path)).eval()
    x = texts(3, 90).x
    ids = (x.long() - 1).clamp(min=0)
    states = loaded(input_ids=ids, attention_mask=(x > 0).long()).last_hidden_state
    torch.testing.assert_close(network.eval().states(x)[0], states, rtol=1e-4, atol=1e-5)


def test_masked_tokens_use_the_mask_of_the_checkpoint_and_never_special_tokens(tiny_bert: Path, tiny_gpt2: Path):
    facts = find_tokens(blueprint_of(tiny_bert).config)
    assert (facts.mask, set(facts.special)) == (5, {1, 2, 3, 4, 5})
    assert find_tokens(blueprint_of(tiny_gpt2).config).mask is None


@pytest.mark.parametrize("objective", ["masked_tokens", "contrastive"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_checkpoint_learns_without_labels_before_the_task(checkpoint_folder, family, objective):
    blueprint = blueprint_of(checkpoint_folder(family))
    num_tokens = blueprint.layout.num_tokens
    training = Training(
        batch_size=16, learning_rate=1e-3, stages=({"epochs": 3, "objective": objective}, {"epochs": 1})
    )
    set_deterministic(seed=0, num_threads=1)
    network = build_network(blueprint)
    names = set(network.state_dict())
    data = TrainingData(texts(96, num_tokens), texts(32, num_tokens, 1))
    losses: list[float] = []
    hooks = TrainingHooks(on_epoch=lambda epoch: losses.append(epoch.train_loss))
    set_up = stage_setup(training, blueprint, data, data.train)
    modules: list[nn.Module] = []

    def recorded(network: nn.Module, number: int, part: Training):
        setup = set_up(network, number, part)
        modules.append(setup.module)
        return setup

    train_in_stages(network, training, recorded, placement=Placement(), hooks=hooks)
    assert all(map(math.isfinite, losses))
    assert losses[2] < losses[0] or family == "gpt2"  # a causal decoder does not see the tokens behind a mask
    assert set(network.state_dict()) == names
    if isinstance(modules[0], MaskedTokens):
        assert (modules[0].mask_vector is None) == (family == "bert")
        assert modules[0].bias.numel() == num_tokens - 1
