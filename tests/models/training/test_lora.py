"""Low-rank adapters: what learns, what is merged, what is written, and kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Gpt, Transformer
from bloomery.models.training.checkpointing import Checkpointer
from bloomery.models.training.config import Checkpoints, Training
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import TrainingHooks, TrainingState, train
from bloomery.models.training.lora import Adapter, add_adapters, find_targets, merge_adapters
from bloomery.models.training.stage_setup import require_valid_layers
from bloomery.models.training.transfer_config import Lora

pytest.importorskip("peft")

TOKENS = Layout(kind="tokens", shape=(6,), num_tokens=12)
TRANSFORMER = Transformer(kind="transformer", width=16, num_heads=2, num_layers=2, dropout=0.1)
BLUEPRINT = Blueprint(config=TRANSFORMER, layout=TOKENS, num_outputs=3)


def rows(num_rows: int, seed: int) -> Examples:
    x = torch.randint(1, 12, (num_rows, 6), generator=torch.Generator().manual_seed(seed)).float()
    return Examples(x, x[:, 0].long() % 3, x[:, 0].numpy())


class Killed(Exception):
    pass


def run(lora: Lora, folder: Path | None = None, killed_at: int | None = None) -> tuple[nn.Module, Adapter]:
    set_deterministic(seed=0, num_threads=1)
    network = build_network(BLUEPRINT)
    adapted = add_adapters(network, lora)
    checkpointer = Checkpointer(folder or Path(), Checkpoints(every_steps=3) if folder else Checkpoints())

    def save(state: TrainingState) -> None:
        checkpointer.save(state)
        if state.step == killed_at:
            raise Killed

    hooks = TrainingHooks(load=checkpointer.load if folder else lambda state: None, save=save)
    train(network, TrainingData(rows(100, 1), rows(30, 2)), Training(epochs=2, batch_size=16, ema=0.9), hooks=hooks)
    return network, merge_adapters(adapted, network)


def test_only_adapters_and_the_head_learn_and_are_merged_into_a_plain_network():
    set_deterministic(seed=0, num_threads=1)
    before = build_network(BLUEPRINT)
    weights = before.state_dict()
    adapted = add_adapters(network := build_network(BLUEPRINT), Lora(rank=2))
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == {"head.weight", "head.bias"}
    x = rows(5, 3).x
    merge_adapters(adapted, network)
    assert network.state_dict().keys() == weights.keys()
    trained, adapter = run(Lora(rank=2, targets=("query", "value")))
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, weights[name])}
    expected = {f"blocks.{block}.attention.{name}.weight" for block in (0, 1) for name in ("query", "value")}
    assert changed == {*expected, "head.weight", "head.bias"}
    assert adapter.num_layers == 4
    rank = torch.linalg.matrix_rank(trained.blocks[0].attention.query.weight - before.blocks[0].attention.query.weight)
    assert int(rank) <= 2
    assert not hasattr(trained, "peft_config")
    assert type(trained.blocks[0].attention.query) is nn.Linear
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert trained(x).shape == (5, 3)


@pytest.mark.parametrize("killed_at", [4, 8, 13])
def test_a_killed_training_of_adapters_ends_with_the_same_bits(killed_at, tmp_path: Path):
    lora = Lora(rank=2, dropout=0.1)
    expected, expected_adapter = run(lora)
    with pytest.raises(Killed):
        run(lora, tmp_path, killed_at)
    network, adapter = run(lora, tmp_path)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
    assert all(torch.equal(adapter.weights[name], tensor) for name, tensor in expected_adapter.weights.items())


def test_peft_reads_the_files_and_gives_the_same_outputs(tmp_path: Path):
    from peft import PeftModel

    network, adapter = run(Lora(rank=3, targets=("query", "up")))
    adapter.write(tmp_path)
    set_deterministic(seed=0, num_threads=1)
    untrained = build_network(BLUEPRINT)
    untrained.head.load_state_dict(network.head.state_dict())
    loaded = PeftModel.from_pretrained(untrained, str(tmp_path)).eval()
    x = rows(7, 3).x
    torch.testing.assert_close(loaded(x), network.eval()(x))
    options = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (options["peft_type"], options["r"], options["lora_alpha"]) == ("LORA", 3, 16.0)
    assert options["target_modules"] == sorted(options["target_modules"])
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == set(adapter.weights)


@pytest.mark.parametrize(
    ("config", "layout", "targets", "expected"),
    [
        (TRANSFORMER, TOKENS, "auto", {"query", "key", "value", "out", "up", "down"}),
        (Gpt(kind="gpt", width=8, num_heads=2), TOKENS, ("attention.out",), {"out"}),
        (Cnn(kind="cnn", channels=(4,), hidden=8), Layout(kind="image", shape=(1, 8, 8)), "auto", {"hidden"}),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_targets_are_linear_layers_before_the_head(config, layout, targets, expected):
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=2))
    names = find_targets(network, Lora(targets=targets))
    assert {name.rpartition(".")[2] for name in names} == expected
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("target", ["q_proj", "head", "embedding", "uery"])
def test_a_target_without_a_layer_lists_what_exists(target):
    with pytest.raises(RecipeInvalid, match=target) as refusal:
        find_targets(build_network(BLUEPRINT), Lora(targets=("value", target)))
    assert "query, key, value, out, up, down" in refusal.value.required


def test_a_network_without_linear_layers_has_no_targets():
    config = Cnn(kind="cnn", channels=(4,), hidden=0)
    network = build_network(Blueprint(config=config, layout=Layout(kind="image", shape=(1, 8, 8)), num_outputs=2))
    with pytest.raises(RecipeInvalid, match="no linear layer"):
        find_targets(network, Lora())


def test_all_adapted_layers_are_named_and_counted():
    """`peft` keeps only the ends of more than 20 names."""
    config = TRANSFORMER.model_copy(update={"num_layers": 4})
    network = build_network(BLUEPRINT.model_copy(update={"config": config}))
    adapter = merge_adapters(add_adapters(network, Lora(rank=1)), network)
    names = find_targets(network, Lora())
    assert len(names) == adapter.num_layers == 24
    assert adapter.options["target_modules"] == sorted(names)


@pytest.mark.parametrize(
    "stages", [(), ({"epochs": 1, "freeze": "body"},), ({"epochs": 1, "freeze": "body"}, {"epochs": 1})]
)
def test_adapters_that_never_learn_are_refused(stages):
    options = {"stages": stages} if stages else {"epochs": 1, "freeze": "body"}
    training = Training(lora=Lora(rank=1), **options)
    if len(stages) == 2:
        require_valid_layers(training, BLUEPRINT, rows(8, 1))
        return
    with pytest.raises(RecipeInvalid, match="all 12 adapters are frozen"):
        require_valid_layers(training, BLUEPRINT, rows(8, 1))


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"targets": []}, {"target": ["query"]}])
def test_invalid_adapters_are_refused(options):
    with pytest.raises(ValidationError):
        Lora(**options)


def test_a_single_target_needs_no_list():
    assert Lora(targets="query").targets == ("query",)
    assert Lora(targets="auto").targets == "auto"


def test_adapters_are_part_of_keys_only_if_set():
    assert "lora" not in Training(epochs=1).identity()
    assert Training(epochs=1, lora=Lora()).identity()["lora"]["rank"] == 8
