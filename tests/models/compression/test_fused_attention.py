"""Fused attention: the same outputs, in float and in 8 bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
from bloomery.models.compression.quantization.post_training import (
    QuantizationOptions,
    preprocess,
    quantizable_layers,
    quantize,
)
from bloomery.models.export.onnx_exporter import export_onnx, measure_parity
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import FtTransformer, Gpt, Mlp, Model, Transformer

pytestmark = pytest.mark.slow  # each exports a network

TOKENS = Layout(kind="tokens", shape=(10,), num_tokens=500)
FLAT = Layout(kind="flat", shape=(6,))


def rows_of(layout: Layout) -> torch.Tensor:
    torch.manual_seed(0)
    if layout.kind == "flat":
        return torch.randn(64, 6)
    return torch.randint(1, 500, (64, 10)) * (torch.arange(10) < torch.randint(0, 11, (64, 1))).float()


def count_operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("config", "layout", "num_fused", "num_unfused"),
    [
        (Transformer(kind="transformer", width=32, num_layers=2, num_heads=2, wide=True), TOKENS, 2, 0),
        (Gpt(kind="gpt", width=32, num_layers=1), TOKENS, 1, 0),
        # In its last block only one token has a query, so queries, keys and values are not maps of the same tensor.
        (FtTransformer(kind="ft_transformer", width=16, num_layers=2, num_heads=2), FLAT, 1, 1),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_fused_attention_has_the_same_outputs_and_can_be_quantized(
    config: Model, layout: Layout, num_fused: int, num_unfused: int, reduce_range: bool, tmp_path: Path
) -> None:
    network, x = build_network(Blueprint(config=config, layout=layout, num_outputs=4)).eval(), rows_of(layout)
    if isinstance(config, Transformer):
        blueprint = Blueprint(config=config, layout=layout, num_outputs=4)
        network, _ = prune_network(network, blueprint, Pruning(ratio=0.5, structures=("heads",)))
    export_onnx(network, x, tmp_path / "plain.onnx")
    assert fuse_attention(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
    fused_operators, plain_operators = (
        count_operators(tmp_path / "fused.onnx"),
        count_operators(tmp_path / "plain.onnx"),
    )
    assert (fused_operators["Attention"], fused_operators["MultiHeadAttention"]) == (num_fused, num_unfused)
    assert (
        plain_operators["MatMul"] - fused_operators["MatMul"]
        == plain_operators["Add"] - fused_operators["Add"]
        == 3 * num_fused
    )
    assert measure_parity(network, x, tmp_path / "fused.onnx") < 1e-5
    onnx.checker.check_model(tmp_path / "fused.onnx")

    layer_names = quantizable_layers(onnx.load(preprocess(tmp_path / "fused.onnx", tmp_path)), "dynamic")
    for keep_float in ((), tuple(layer_names)):
        source, target = tmp_path / "fused.onnx", tmp_path / "int8.onnx"
        quantize(
            source,
            target,
            x.numpy(),
            QuantizationOptions(mode="dynamic", reduce_range=reduce_range, keep_float=keep_float),
        )
        integer_operators = measure_integer_coverage(tmp_path / "int8.onnx").integer_operators
        assert integer_operators.get("QAttention", 0) == (0 if keep_float else num_fused)
        exact_BK = run_session(create_session(tmp_path / "fused.onnx"), x.numpy())
        quantized_BK = run_session(create_session(tmp_path / "int8.onnx"), x.numpy())
        np.testing.assert_allclose(quantized_BK, exact_BK, atol=0.1 * np.abs(exact_BK).max())


def test_a_network_without_attention_is_not_written(tmp_path: Path) -> None:
    network = build_network(Blueprint(config=Mlp(kind="mlp", hidden=(8,)), layout=FLAT, num_outputs=4)).eval()
    export_onnx(network, rows_of(FLAT), tmp_path / "plain.onnx")
    assert not fuse_attention(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
    assert not (tmp_path / "fused.onnx").exists()


def test_attention_with_a_bias_of_its_scores_is_not_fused(tmp_path: Path) -> None:
    nodes, weights = [], [numpy_helper.from_array(np.zeros((1, 1, 5, 5), np.float32), "scores")]
    for name in ("query", "key", "value"):
        weights += [
            numpy_helper.from_array(np.eye(8, dtype=np.float32), f"{name}.weight"),
            numpy_helper.from_array(np.zeros(8, np.float32), f"{name}.bias"),
        ]
        nodes += [
            helper.make_node("MatMul", ["x", f"{name}.weight"], [f"{name}.product"]),
            helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [name]),
        ]
    inputs = ["query", "key", "value", "", "", "scores"]
    nodes.append(helper.make_node("MultiHeadAttention", inputs, ["y"], domain="com.microsoft", num_heads=1))
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 5, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "attention", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "plain.onnx")
    assert not fuse_attention(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
    del nodes[-1].input[5:]
    graph = helper.make_graph(nodes, "attention", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "plain.onnx")
    assert fuse_attention(tmp_path / "plain.onnx", tmp_path / "fused.onnx")
