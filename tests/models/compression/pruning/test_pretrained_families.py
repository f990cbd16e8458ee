"""Pruned image and audio networks of `transformers` compute what the trained ones do without the removed parts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import CandidateSpec, Pruning, Student
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.compression.low_rank import factorize
from bloomery.models.compression.obstacles import (
    find_factorization_obstacle,
    find_layer_obstacle,
    find_pruning_obstacle,
    find_vocabulary_obstacle,
)
from bloomery.models.compression.pruning.pretrained_layers import take_layers
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.compression.quantization.quantization_aware import add_fake_quantization, remove_fake_quantization
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork
from bloomery.models.networks.blueprint import (
    Blueprint,
    build_network,
    num_parameters,
    read_network,
    write_network,
)
from bloomery.models.networks.body_families import FAMILIES, STAGED_FAMILIES
from bloomery.models.networks.body_layers import get_map, get_norm, linear_maps, list_layers, list_units, measure_shape
from bloomery.models.networks.pretrained_config import Pretrained
from tests.checkpoints import CheckpointFolder

_IMAGES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 2]}
_CONFIGS: dict[str, dict[str, Any]] = {
    "dinov2": _IMAGES,
    "dinov2_with_registers": _IMAGES,
    "vit_msn": {**_IMAGES, "intermediate_size": 64},
    "deit": {**_IMAGES, "intermediate_size": 64},
    "resnet": {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "convnext": {**_STAGES, "num_stages": 2},
    "swin": {
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 4,
        "image_size": 32,
        "patch_size": 2,
    },
}
_SAVED = {"vit": (3, 16, 16), "wav2vec2": (1, 1, 400), "ast": (1, 16, 24)}  # tests/checkpoints.py, and their rows
_DAILY = ("vit", "dinov2", "wav2vec2", "resnet")
_ALL = (*_SAVED, *_CONFIGS, "hubert", "bottleneck")


class _Trained(NamedTuple):
    network: PretrainedNetwork
    blueprint: Blueprint
    x: torch.Tensor


def _build(name: str, checkpoint_folder: CheckpointFolder) -> _Trained:
    if name in _SAVED or name == "hubert":
        folder = checkpoint_folder("wav2vec2" if name == "hubert" else name)
        document = json.loads((folder / "config.json").read_text())
        if name == "hubert":
            document["model_type"] = name
        shape = _SAVED.get(name, _SAVED["wav2vec2"])
    elif name == "bottleneck":
        document, shape = {**_CONFIGS["resnet"], "model_type": "resnet", "layer_type": name}, (3, 32, 32)
        document["hidden_sizes"] = [16, 32]
    else:
        document = {**_CONFIGS[name], "model_type": name}
        size = document.get("image_size", 32)
        shape = (3, size, size)
    layout = Layout(kind="image", shape=shape)
    torch.manual_seed(0)
    config = Pretrained(kind="pretrained", checkpoint=name, config=document)
    blueprint = Blueprint(config=config, layout=layout, num_outputs=3)
    network = build_network(blueprint)
    assert isinstance(network, PretrainedNetwork)
    return _Trained(network.eval(), blueprint, torch.randn(8, *layout.shape))


def _cases(names: tuple[str, ...]) -> list[Any]:
    return [name if name in _DAILY else pytest.param(name, marks=pytest.mark.nightly) for name in names]


@pytest.mark.parametrize("name", _cases(_ALL))
def test_removed_units_count_as_zero(name: str, checkpoint_folder: CheckpointFolder, tmp_path: Path):
    trained = _build(name, checkpoint_folder)
    body = trained.network.body
    with torch.no_grad():
        for group in list_units(body):
            writer = get_map(body, group.writer)
            writer.weight[::2] = 0
            if writer.bias is not None:
                writer.bias[::2] = 0
            if group.norm is not None:
                norm = get_norm(body, group.norm)
                norm.weight[::2], norm.bias[::2] = 0, 0
                norm.running_mean.uniform_(-1, 1)
            get_map(body, group.reader).weight[:, ::2] = 0
        pruned, blueprint = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5))
        expected = trained.network(trained.x)
        torch.testing.assert_close(pruned(trained.x), expected)
        shapes = [measure_shape(network.body) for network in (trained.network, pruned)]
        assert shapes[1].units == tuple(units // 2 for units in shapes[0].units)
        write_network(pruned, blueprint, tmp_path / "weights.safetensors", tmp_path / "network.json")
        rebuilt, _ = read_network(tmp_path / "weights.safetensors", tmp_path / "network.json")
        assert torch.equal(rebuilt(trained.x), pruned(trained.x))


_LAYERED = tuple(name for name in _ALL if name not in (*STAGED_FAMILIES, "bottleneck"))


@pytest.mark.parametrize("name", _cases(_LAYERED))
def test_removed_heads_and_layers_count_as_absent(name: str, checkpoint_folder: CheckpointFolder):
    trained = _build(name, checkpoint_folder)
    body = trained.network.body
    layers = list_layers(body, FAMILIES[body.config.model_type])
    with torch.no_grad():
        for layer in layers:
            maps = linear_maps(layer, FAMILIES[body.config.model_type])
            for projection in (maps.query, maps.key, maps.value):
                projection.weight[16:] = 0
                projection.bias[16:] = 0
            maps.out.weight[:, 16:] = 0
        pruned, _ = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5, structures=("heads",)))
        torch.testing.assert_close(pruned(trained.x), trained.network(trained.x))
        assert measure_shape(pruned.body).heads == (1, 1)
        student, _ = take_layers(trained.network, trained.blueprint, [1])
        layers[0].register_forward_hook(lambda module, inputs, output: inputs[0])
        torch.testing.assert_close(student(trained.x), trained.network(trained.x))
        for weight in layers[0].parameters():
            weight.mul_(1e-3)  # the least important layer
        without, _ = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.5, structures=("layers",)))
        torch.testing.assert_close(without(trained.x), trained.network(trained.x))


@pytest.mark.parametrize(
    "name", ["vit", "wav2vec2", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("dinov2", "ast", "swin"))]
)
def test_the_matrices_of_each_family_have_a_lower_rank(
    name: str, checkpoint_folder: CheckpointFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bloomery.models.compression.low_rank._MIN_PARAMETERS", 64)
    trained = _build(name, checkpoint_folder)
    smaller = factorize(trained.network, 0.5)
    assert num_parameters(smaller) < num_parameters(trained.network)
    with torch.no_grad():
        multiplied = copy.deepcopy(trained.network)
        for path, layer in multiplied.named_modules():
            thin = smaller.get_submodule(path)
            if isinstance(layer, torch.nn.Linear) and isinstance(thin, torch.nn.Sequential):
                layer.weight.copy_(thin[1].weight @ thin[0].weight)
        torch.testing.assert_close(smaller(trained.x), multiplied(trained.x))
    if name not in ("vit", "wav2vec2"):
        assert export_onnx(smaller, trained.x, tmp_path / "network.onnx") <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("resnet", "static"),
        *(
            pytest.param(name, mode, marks=pytest.mark.nightly)
            for name, mode in (
                *(("bottleneck", "static"), ("convnext", "static"), ("convnext", "dynamic")),
                *(("swin", "dynamic"), ("ast", "dynamic"), ("wav2vec2", "dynamic")),
            )
        ),
    ],
)
def test_pruned_networks_compute_in_8_bits(name: str, mode: str, checkpoint_folder: CheckpointFolder, tmp_path: Path):
    trained = _build(name, checkpoint_folder)
    pruned, _ = prune_network(trained.network, trained.blueprint, Pruning(ratio=0.25))
    source, target = tmp_path / "network.onnx", tmp_path / "quantized.onnx"
    assert export_onnx(pruned, trained.x, source) <= TOLERANCE
    if mode == "dynamic" and fuse_attention(source, tmp_path / "fused.onnx"):
        source = tmp_path / "fused.onnx"
    quantize(source, target, trained.x.numpy(), QuantizationOptions(mode=mode))
    with torch.no_grad():
        expected = pruned(trained.x).numpy()
    outputs = run_session(create_session(target), trained.x.numpy())
    assert np.abs(outputs - expected).max() < 0.2 * np.abs(expected).max()


@pytest.mark.parametrize("name", _cases(("vit", "dinov2", "deit", "vit_msn", "wav2vec2", "resnet")))
def test_pretrained_networks_learn_with_rounded_weights(name: str, checkpoint_folder: CheckpointFolder):
    trained = _build(name, checkpoint_folder)
    rounded = add_fake_quantization(trained.network).train()
    rounded(trained.x).sum().backward()
    restored = remove_fake_quantization(rounded).eval()
    assert restored.state_dict().keys() == trained.network.state_dict().keys()
    assert restored(trained.x).shape == (8, 3)


def _pretrained(model_type: str, **options: Any) -> Pretrained:
    return Pretrained(kind="pretrained", checkpoint="tiny", config={"model_type": model_type, **options})


def test_what_a_family_does_not_support_has_a_reason():
    resnet, dinov2 = _pretrained("resnet"), _pretrained("dinov2", num_hidden_layers=12)
    giant = _pretrained("dinov2", num_hidden_layers=40, use_swiglu_ffn=True)
    assert find_pruning_obstacle(resnet, Pruning(ratio=0.5, scope="global")) is None
    assert "only `units`" in find_pruning_obstacle(resnet, Pruning(ratio=0.5, structures=("layers",)))
    assert "stages of resnet differ" in find_layer_obstacle(resnet, 2)
    for family in ("resnet", "regnet", "efficientnet"):
        assert f"{family} has convolutions" in find_factorization_obstacle(_pretrained(family))
    for family in ("wav2vec2", "hubert", "data2vec-audio"):  # they state the vocabulary of a head for transcripts
        assert "has no vocabulary" in find_vocabulary_obstacle(_pretrained(family, vocab_size=32))
    assert all(find_factorization_obstacle(_pretrained(family)) is None for family in ("convnext", "vit", "wav2vec2"))
    assert find_pruning_obstacle(dinov2, Pruning(ratio=0.5, structures=("units", "heads", "layers"))) is None
    assert find_layer_obstacle(dinov2, 3) is None
    for obstacle in (find_pruning_obstacle(giant, Pruning(ratio=0.5)), find_layer_obstacle(giant, 3)):
        assert "have gates" in obstacle
    assert "regnet are not known" in find_pruning_obstacle(_pretrained("regnet"), Pruning(ratio=0.5))


def test_the_default_candidates_suit_the_family():
    layered = _pretrained("dinov2", num_hidden_layers=12)
    audio = _pretrained("wav2vec2", num_hidden_layers=12, vocab_size=32)
    resnet, regnet, swin = (_pretrained(name, depths=[2, 2]) for name in ("resnet", "regnet", "swin"))
    named = {model.config["model_type"]: _defaults(model) for model in (layered, audio, resnet, regnet, swin)}
    assert {family: list(specs) for family, specs in named.items()} == {
        "dinov2": ["fp32", "int8", "pruned-int8", "student-int8"],
        "wav2vec2": ["fp32", "int8", "pruned-int8", "student-int8"],
        "resnet": ["fp32", "int8", "pruned-int8"],
        "regnet": ["fp32", "int8"],
        "swin": ["fp32", "int8", "pruned-int8"],
    }
    for family, specs in named.items():
        mode = "static" if family in ("resnet", "regnet") else "dynamic"
        assert {spec.quantize for spec in specs.values()} == {None, mode}
    assert isinstance(named["dinov2"]["student-int8"].student, Student)


def _defaults(model: Pretrained) -> dict[str, CandidateSpec]:
    return {spec.name: spec for spec in default_candidates("pretrained", pretrained=model)}
