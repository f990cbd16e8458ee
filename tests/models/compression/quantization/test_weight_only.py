"""Weight-only quantization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage, optimized_graph
from bloomery.models.compression.quantization.weight_only import quantize_weights
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Rnn
from tests.examples import examples

# The ratio of file sizes, and the error relative to the spread of the logits.
EXPECTED = {"fp16": (0.53, 1e-3), "bf16": (0.53, 0.01), "int8": (0.31, 0.02), "int4": (0.2, 0.2)}


@pytest.fixture(scope="module")
def gru(tmp_path_factory) -> tuple[Path, np.ndarray]:
    torch.manual_seed(0)
    layout = Layout(kind="sequence", shape=(6, 5))
    network = build_network(Blueprint(config=Rnn(kind="rnn", cell="gru", hidden=48), layout=layout, num_outputs=3))
    x, path = torch.randn(64, 6, 5), tmp_path_factory.mktemp("gru") / "float.onnx"
    export_onnx(network, x, path)
    return path, x.numpy()


@pytest.mark.parametrize("weight_type", EXPECTED)
@pytest.mark.parametrize("kind", ["gru", "cnn"])
def test_the_file_is_smaller_and_runs_like_the_float_file(kind, weight_type, gru, exported, splits, tmp_path: Path):
    source, x = gru if kind == "gru" else (exported, splits.test.x[:64].numpy())
    quantize_weights(source, tmp_path / "stored.onnx", weight_type)
    onnx.checker.check_model(onnx.load(tmp_path / "stored.onnx"))
    share, error = EXPECTED[weight_type]
    overhead = 5_000  # of the decoding nodes, which matter for small networks
    assert (tmp_path / "stored.onnx").stat().st_size < share * source.stat().st_size + overhead
    exact_BK, quantized_BK = (run_session(create_session(path), x) for path in (source, tmp_path / "stored.onnx"))
    assert 0 < np.square(quantized_BK - exact_BK).mean() ** 0.5 < error * exact_BK.std()
    # Decoding is folded when the file is opened: the operators of the float file run.
    before, after = (
        [node.op_type for node in optimized_graph(path).graph.node] for path in (source, tmp_path / "stored.onnx")
    )
    assert sorted(before) == sorted(after)
    assert measure_integer_coverage(tmp_path / "stored.onnx").share == 0


def test_weight_quantization_is_deterministic(exported, tmp_path: Path):
    for name in ("one", "other"):
        quantize_weights(exported, tmp_path / name, "int4")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def _store_and_decode(weight: np.ndarray, weight_type, block: int, folder: Path) -> np.ndarray:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "one weight",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, list(weight.shape))],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "w.onnx")
    quantize_weights(folder / "w.onnx", folder / "stored.onnx", weight_type, block_size=block)
    return create_session(folder / "stored.onnx").run(["y"], {"x": np.zeros(1, np.float32)})[0]


@settings(max_examples=examples(25), deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(256,), (7, 37), (3, 10, 11), (16, 16)]),
    scale=st.sampled_from([1e-9, 1.0, 1e6]),
    block=st.sampled_from([16, 64]),
    weight_type=st.sampled_from(["int8", "int4"]),
)
def test_the_error_of_a_value_is_at_most_its_blocks_step(seed, shape, scale, block, weight_type, tmp_path_factory):
    weight = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
    weight.flat[:block] = 0  # a block of zeros
    decoded = _store_and_decode(weight, weight_type, block, tmp_path_factory.mktemp("w"))
    assert decoded.shape == weight.shape
    assert (decoded.flat[:block] == 0).all()
    blocks = np.pad(np.abs(weight).ravel(), (0, -weight.size % block)).reshape(-1, block).max(1).repeat(block)
    # Half a step, plus clipping at 4 bits, which reduces the total error.
    max_error = blocks[: weight.size] * (0.012 if weight_type == "int8" else 0.4)
    assert (np.abs(decoded - weight).ravel() <= max_error + 1e-30).all()
    rounded = np.square(decoded - weight).sum() ** 0.5
    assert rounded <= np.square(weight).sum() ** 0.5 * (0.02 if weight_type == "int8" else 0.2)
