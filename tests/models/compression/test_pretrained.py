"""Every step of compression on pretrained networks: it makes them smaller, and they export and rebuild."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import CandidateSpec, Compression, Distillation, Pruning
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.compression.inherited_loss import inherit_candidate_losses
from bloomery.models.compression.obstacles import (
    find_compression_obstacle,
    find_layer_obstacle,
    find_pruning_obstacle,
    find_vocabulary_obstacle,
)
from bloomery.models.compression.pruning.pretrained_layers import choose_layers, take_layers
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.compression.quantization.weight_only import quantize_weights
from bloomery.models.compression.vocabulary import trim_vocabulary
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import build_network, num_parameters, read_network, write_network
from bloomery.models.networks.body_layers import measure_shape
from bloomery.models.networks.config import Mlp
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples
from tests.checkpoints import CheckpointFolder, save_network
from tests.models.compression.pretrained_networks import NUM_OUTPUTS, TinyNetwork, build_tiny

_LOOP = Loop(epochs=1, batch_size=8, learning_rate=1e-3)
_STEPS = {
    "trim_vocabulary": {"trim_vocabulary": 1},
    "units": {"prune": {"ratio": 0.5}},
    "heads": {"prune": {"ratio": 0.5, "structures": ["units", "heads"], "importance": "taylor"}},
    "layers": {"prune": {"ratio": 0.5, "structures": ["layers"]}},
    "global": {"prune": {"ratio": 0.5, "scope": "global"}},
    "factorize": {"factorize": 0.5},
    "sparsify": {"sparsify": {"density": 0.5, "rounds": 1}},
    "num_clusters": {"num_clusters": 8},
    "student": {"student": {"layers": 1}},
    "all": {"trim_vocabulary": 0.9, "student": {"layers": [1]}, "prune": 0.5, "factorize": 0.5},
}

_DAILY = ("heads", "all")


@pytest.fixture(scope="module")
def tiny(checkpoint_folder: CheckpointFolder) -> TinyNetwork:
    return build_tiny(checkpoint_folder("bert"))


def _compress(tiny: TinyNetwork, tokenizer: Path | None, distill: Distillation | None, **steps) -> torch.nn.Module:
    y = torch.arange(len(tiny.x)) % NUM_OUTPUTS
    rows = Examples(tiny.x, y, np.arange(len(y)))
    compression = Compression(fine_tune=_LOOP, distill=distill)
    documents = {} if tokenizer is None else {"text": tokenizer.read_text()}
    fine_tuning = FineTuning(rows, rows, tiny.network, compression, tokenizers=documents)
    return compress_network(tiny.network, tiny.blueprint, CandidateSpec(name="smaller", **steps), fine_tuning)


@pytest.mark.parametrize(
    "step", [name if name in _DAILY else pytest.param(name, marks=pytest.mark.nightly) for name in _STEPS]
)
def test_each_step_makes_a_smaller_network_that_exports(
    step: str, tiny: TinyNetwork, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bloomery.models.compression.low_rank._MIN_PARAMETERS", 64)
    before = {name: weight.clone() for name, weight in tiny.network.state_dict().items()}
    smaller = _compress(tiny, tiny_bert / "tokenizer.json", Distillation(), **_STEPS[step])
    if step not in ("sparsify", "num_clusters"):
        assert num_parameters(smaller) < num_parameters(tiny.network)
    assert export_onnx(smaller, tiny.x, tmp_path / "network.onnx") <= TOLERANCE
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.network.state_dict().items())


class Exported(NamedTuple):
    """A compressed network, its file, and the one with fused attention."""

    network: torch.nn.Module
    path: Path
    fused: Path


@pytest.fixture(scope="module")
def exported(tiny: TinyNetwork, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    smaller = _compress(tiny, tiny_bert / "tokenizer.json", None, trim_vocabulary=1, prune=0.25)
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(smaller, tiny.x, folder / "network.onnx")
    assert fuse_attention(folder / "network.onnx", folder / "fused.onnx")
    return Exported(smaller, folder / "network.onnx", folder / "fused.onnx")


@pytest.mark.parametrize("mode", ["dynamic", "static", "int8", "int4", "fp16", "bf16"])
def test_trimmed_and_pruned_networks_are_quantized(mode: str, exported: Exported, tiny: TinyNetwork, tmp_path: Path):
    source, target = exported.path if mode == "static" else exported.fused, tmp_path / "quantized.onnx"
    if mode in ("dynamic", "static"):
        quantize(source, target, tiny.x.numpy(), QuantizationOptions(mode=mode))
    else:
        quantize_weights(source, target, mode)
    assert target.stat().st_size < 0.85 * source.stat().st_size
    with torch.no_grad():
        expected = exported.network(tiny.x).numpy()
    outputs = run_session(create_session(target), tiny.x.numpy())
    assert np.abs(outputs - expected).max() < 0.3 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta"])
def test_pruned_networks_rebuild_from_their_files(family: str, checkpoint_folder: CheckpointFolder, tmp_path: Path):
    original = build_tiny(checkpoint_folder(family))
    pruning = Pruning(ratio=0.5, structures=("units", "heads", "layers"))
    pruned, blueprint = prune_network(original.network, original.blueprint, pruning)
    write_network(pruned, blueprint, tmp_path / "weights.safetensors", tmp_path / "network.json")
    rebuilt, read = read_network(tmp_path / "weights.safetensors", tmp_path / "network.json")
    assert isinstance(read.config, Pretrained)
    assert read.config.shape == measure_shape(pruned.body)
    with torch.no_grad():
        assert torch.equal(rebuilt(original.x), pruned(original.x))
    shape = measure_shape(original.network.body)
    assert read.config.shape.heads == tuple(heads // 2 for heads in shape.heads[:1])
    assert read.config.shape.units == tuple(units // 2 for units in shape.units[:1])


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["distilbert", "electra", "mpnet"])
def test_further_families_are_trimmed_and_pruned(family: str, tmp_path: Path):
    options = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    options |= {"hidden_dim": 64} if family == "distilbert" else {"intermediate_size": 64}
    save_network(tmp_path, family, options | ({"embedding_size": 16} if family == "electra" else {}))
    original = build_tiny(tmp_path)
    kept = torch.unique(original.x[original.x > 0].long() - 1)
    trimmed, blueprint = trim_vocabulary(original.network, original.blueprint, kept)
    with torch.no_grad():
        torch.testing.assert_close(trimmed(original.x), original.network(original.x))
    structures = ("units", "layers") if family == "mpnet" else ("units", "heads", "layers")
    pruned, _ = prune_network(trimmed, blueprint, Pruning(ratio=0.5, structures=structures))
    assert measure_shape(pruned.body).units == (32,)
    assert export_onnx(pruned, original.x, tmp_path / "network.onnx") <= TOLERANCE
    student, _ = take_layers(original.network, original.blueprint, 1)
    assert num_parameters(student) < num_parameters(original.network)


def test_removing_units_without_weight_changes_no_output(tiny: TinyNetwork):
    blank = build_tiny(Path(tiny.blueprint.config.checkpoint))
    with torch.no_grad():
        for layer in blank.network.body.encoder.layer:
            layer.output.dense.weight[:, ::2] = 0
            layer.intermediate.dense.weight[::2] = 0
            layer.intermediate.dense.bias[::2] = 0
        pruned, _ = prune_network(blank.network, blank.blueprint, Pruning(ratio=0.5))
        torch.testing.assert_close(pruned(blank.x), blank.network(blank.x))


def test_a_student_has_the_weights_of_the_layers_it_takes(tiny: TinyNetwork):
    student, blueprint = take_layers(tiny.network, tiny.blueprint, [1])
    own, weights = student.state_dict(), tiny.network.state_dict()
    name = "body.encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(own[name.format(0)], weights[name.format(1)])
    assert torch.equal(own["head.weight"], weights["head.weight"])
    assert build_network(blueprint).state_dict().keys() == own.keys()


@pytest.mark.parametrize(("layers", "expected"), [(3, [0, 2, 5]), (1, [5]), (6, [0, 1, 2, 3, 4, 5]), ((1, 4), [1, 4])])
def test_layers_are_taken_at_equal_distances_or_by_number(layers, expected):
    assert choose_layers(layers, 6) == expected


def test_distillation_compares_features_and_attention(tiny: TinyNetwork):
    distill = Distillation(feature_weight=1, attention_weight=1)
    student = _compress(tiny, None, distill, student={"layers": 1, "training": _LOOP})
    assert num_parameters(student) < num_parameters(tiny.network)


def test_steps_that_a_network_does_not_support_have_a_reason():
    bert = Pretrained(kind="pretrained", checkpoint="tiny", config={"model_type": "bert", "num_hidden_layers": 6})
    mpnet, gpt2 = (bert.model_copy(update={"config": {"model_type": name}}) for name in ("mpnet", "gpt2"))
    assert find_pruning_obstacle(bert, Pruning(ratio=0.5, structures=("heads", "layers"), scope="global")) is None
    assert "share a bias" in find_pruning_obstacle(mpnet, Pruning(ratio=0.5, structures=("heads",)))
    assert "gpt2 are not known" in find_pruning_obstacle(gpt2, Pruning(ratio=0.5))
    assert "keep the dropout" in find_pruning_obstacle(bert, Pruning(ratio=0.5, dropout=0.1))
    assert "has 6 layers" in find_layer_obstacle(bert, (0, 6))
    assert find_layer_obstacle(bert, (0, 5)) is None
    assert "no vocabulary" in find_vocabulary_obstacle(bert)
    for spec in (CandidateSpec(name="a", trim_vocabulary=1), CandidateSpec(name="a", student={"layers": 2})):
        assert "pretrained" in find_compression_obstacle("mlp", spec)


def test_a_network_of_another_kind_is_refused(tiny: TinyNetwork):
    blueprint = tiny.blueprint.model_copy(update={"config": Mlp(kind="mlp"), "layout": tiny.blueprint.layout})
    flat = blueprint.model_copy(update={"layout": {"kind": "flat", "shape": (12,)}})
    other = TinyNetwork(torch.nn.Linear(12, NUM_OUTPUTS), flat, tiny.x)  # type: ignore[arg-type]
    with pytest.raises(RecipeInvalid, match="needs a pretrained network"):
        _compress(other, None, None, trim_vocabulary=1)


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="either `model`"):
        CandidateSpec(name="a", student={})
    with pytest.raises(ValueError, match="rising order"):
        CandidateSpec(name="a", student={"layers": [2, 1]})
    with pytest.raises(ValueError, match="a student with a `model` replaces it"):
        CandidateSpec(name="a", trim_vocabulary=1, student={"model": {"kind": "mlp"}})
    assert "layers" not in CandidateSpec(name="a", student={"model": {"kind": "mlp"}}).model_dump()["student"]
    assert "trim_vocabulary" not in CandidateSpec(name="a").model_dump()
    assert "training" not in CandidateSpec(name="a", prune=0.5).model_dump()["prune"]


def test_the_default_candidates_are_those_that_the_network_supports():
    bert = {"model_type": "bert", "num_hidden_layers": 6, "vocab_size": 100}
    configs = {
        "bert": bert,
        "tiny": {**bert, "num_hidden_layers": 2},
        "vit": {"model_type": "vit", "num_hidden_layers": 12},
        "gpt2": {"model_type": "gpt2", "n_layer": 12, "vocab_size": 100},
    }
    names = {
        name: [spec.name for spec in _defaults(Pretrained(kind="pretrained", checkpoint=name, config=config))]
        for name, config in configs.items()
    }
    assert names == {
        "bert": ["fp32", "int8", "trimmed-int8", "pruned-int8", "student-int8"],
        "tiny": ["fp32", "int8", "trimmed-int8", "pruned-int8"],
        "vit": ["fp32", "int8", "pruned-int8", "student-int8"],
        "gpt2": ["fp32", "int8"],
    }


def test_default_candidates_are_trained_with_the_loss_of_fine_tuning():
    config = {"model_type": "bert", "num_hidden_layers": 6, "vocab_size": 100}
    specs = _defaults(Pretrained(kind="pretrained", checkpoint="bert", config=config))
    options = {"matryoshka": (8,), "class_weights": "balanced"}
    inherited = inherit_candidate_losses(specs, Loop(epochs=1, **options))
    steps = [step for spec in inherited for step in (spec.student, spec.prune) if step is not None]
    assert len(steps) == 3
    assert all(step.training.model_dump(include=set(options)) == options for step in steps)
    assert inherit_candidate_losses(specs, Loop(epochs=1)) == specs


def _defaults(model: Pretrained) -> tuple[CandidateSpec, ...]:
    specs = default_candidates("pretrained", pretrained=model)
    assert Compression(candidates=specs).candidates == specs
    return specs
