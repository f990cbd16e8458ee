"""Files whose arithmetic is in float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import CandidateSpec
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.compression.quantization.half_precision import convert_to_half
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Mlp, Transformer
from bloomery.tasks.compress import stage

NUM_TOKENS = 5_000  # float16 has no exact odd numbers above 2,048
CASES = {
    "mlp": (
        Mlp(kind="mlp", hidden=(64,), embedding=8),
        Layout(kind="flat", shape=(3,), categories=((2, NUM_TOKENS),)),
    ),
    "cnn": (Cnn(kind="cnn", channels=(8,), hidden=256), Layout(kind="image", shape=(1, 8, 8))),
    "transformer": (
        Transformer(kind="transformer", width=32, num_layers=1, num_heads=2),
        Layout(kind="tokens", shape=(10,), num_tokens=NUM_TOKENS),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_outputs_agree_within_half_precision(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config, layout = CASES[kind]
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=3)).eval()
    x = torch.randn(32, *layout.shape)
    if kind == "transformer":
        x = torch.randint(2_049, NUM_TOKENS, x.shape).float()
    elif kind == "mlp":
        x[:, 2] = torch.randint(2_049, NUM_TOKENS, (32,)).float()
    source, target = tmp_path / "float.onnx", tmp_path / "half.onnx"
    export_onnx(network, x, source)
    if kind == "transformer" and fuse_attention(source, tmp_path / "fused.onnx"):
        source = tmp_path / "fused.onnx"
    convert_to_half(source, target)
    assert target.stat().st_size < 0.7 * source.stat().st_size
    model = onnx.load(target)
    ends = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    large = [tensor.data_type for tensor in model.graph.initializer if np.prod(tensor.dims) > 64]
    assert set(large) == {TensorProto.FLOAT16}
    exact = run_session(create_session(source), x.numpy())
    outputs = run_session(create_session(target), x.numpy())
    assert outputs.dtype == np.float32
    assert 0 < np.abs(outputs - exact).max() < 5e-3 * np.abs(exact).max()


def test_a_candidate_computes_in_half_precision_or_in_integers() -> None:
    with pytest.raises(ValueError, match="`compute` stores weights in its own type"):
        CandidateSpec(name="a", compute="fp16", quantize="dynamic")
    spec = CandidateSpec(name="a", compute="fp16")
    assert not spec.is_baseline
    assert not spec.is_float
    assert not spec.changes_network
    assert "compute" not in CandidateSpec(name="a").model_dump()
    assert spec.before_quantization == CandidateSpec(name="a").before_quantization


def test_only_a_gpu_serves_files_in_half_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    specs = (CandidateSpec(name="fp32"), CandidateSpec(name="fp16", compute="fp16"))
    blueprint = Blueprint(config=Mlp(kind="mlp"), layout=Layout(kind="flat", shape=(3,)), num_outputs=2)
    path = tmp_path / "network.json"
    path.write_text(blueprint.model_dump_json())
    messages: list[str] = []
    monkeypatch.setattr(stage, "emit", lambda progress: messages.append(str(progress)))
    monkeypatch.setattr(stage, "settings", lambda: type("", (), {"path": staticmethod(lambda uri: path)}))
    trained = type("", (), {"network_uri": "network.json"})
    assert stage._applicable_specs(trained, specs, "cuda") == specs
    assert stage._applicable_specs(trained, specs) == specs[:1]
    assert "serve: {device: cuda}" in messages[0]
