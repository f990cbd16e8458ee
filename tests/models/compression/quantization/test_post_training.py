"""Static and dynamic quantization to 8 bits."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
from bloomery.models.compression.quantization.post_training import QuantizationOptions, find_first_layer, quantize
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Gpt, Model, Rnn, Transformer


def test_the_arithmetic_has_8_bits(quantized):
    graph = onnx.load(quantized).graph
    operators = {node.op_type for node in graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    kinds = {tensor.name: tensor for tensor in graph.initializer}
    weights = [node.input[1] for node in graph.node if node.op_type in ("Conv", "Gemm")]
    dequantized = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    assert len(weights) == 4
    for name in weights:
        values, scales, _ = (kinds[part] for part in dequantized[name].input)
        assert values.data_type == onnx.TensorProto.INT8
        assert list(scales.dims) == [values.dims[0]]  # one scale per channel


def test_batch_normalisation_is_folded(quantized):
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(quantized).graph.node}


def test_most_predictions_stay(exported, quantized, splits):
    x, truth = splits.test.x.numpy(), splits.test.y.numpy()
    before, after = (run_session(create_session(path), x).argmax(1) for path in (exported, quantized))
    assert (before == truth).mean() > 0.85
    assert (before == after).mean() > 0.95


def test_the_file_is_smaller(exported, quantized):
    assert quantized.stat().st_size < exported.stat().st_size


def test_quantization_is_deterministic(exported, quantized, splits, tmp_path: Path):
    quantize(exported, tmp_path / "another name.onnx", splits.train.x[:200].numpy())
    assert (tmp_path / "another name.onnx").read_bytes() == quantized.read_bytes()


def test_the_file_is_valid_and_has_nothing_of_the_machine(quantized):
    model = onnx.load(quantized)
    onnx.checker.check_model(model)
    assert not model.metadata_props
    assert b"/tmp" not in quantized.read_bytes()


def test_biases_have_no_zero_points(quantized):
    graph = onnx.load(quantized).graph
    integers = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT32}
    biases = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in integers]
    assert [len(node.input) for node in biases] == [2, 2, 2, 2]
    assert len(integers) == 4


def test_ranges_come_from_the_calibration_rows(exported, quantized, splits, tmp_path: Path):
    quantize(exported, tmp_path / "other.onnx", splits.train.x[:200].numpy() * 3)
    assert (tmp_path / "other.onnx").read_bytes() != quantized.read_bytes()


@pytest.mark.parametrize("num_rows", [1, 64, 65])
def test_any_number_of_calibration_rows_is_possible(exported, splits, tmp_path: Path, num_rows):
    quantize(exported, tmp_path / "few.onnx", splits.train.x[:num_rows].numpy())
    assert np.isfinite(run_session(create_session(tmp_path / "few.onnx"), splits.test.x[:3].numpy())).all()


def test_the_source_and_the_log_level_do_not_change(exported, splits, tmp_path: Path):
    before, level = exported.read_bytes(), logging.root.level
    quantize(exported, tmp_path / "again.onnx", splits.train.x[:8].numpy())
    assert (exported.read_bytes(), logging.root.level) == (before, level)


TOKENS = Layout(kind="tokens", shape=(10,), num_tokens=500)
KINDS: dict[str, tuple[Model, dict[str, int]]] = {
    "lstm": (
        Rnn(kind="rnn", hidden=32, embedding=32, num_layers=2),
        {"DynamicQuantizeLSTM": 2, "MatMulInteger": 1, "LSTM": 0},
    ),
    "gru": (Rnn(kind="rnn", cell="gru", hidden=32, embedding=32), {"GRU": 1, "MatMulInteger": 1}),
    "elman": (Rnn(kind="rnn", cell="elman", hidden=32, embedding=32), {"RNN": 1, "MatMulInteger": 1}),
    # Each block has 6 linear maps, and attention's products of activations, which stay in float.
    "transformer": (
        Transformer(kind="transformer", width=32, num_layers=1),
        {"MatMulInteger": 7, "MatMul": 0, "Gemm": 0, "MultiHeadAttention": 1},
    ),
    "gpt": (
        Gpt(kind="gpt", width=32, num_layers=1),
        {"MatMulInteger": 7, "MatMul": 0, "Gemm": 0, "MultiHeadAttention": 1},
    ),
}


@pytest.mark.parametrize(
    "kind", ["lstm", "gru", "elman", *(pytest.param(name, marks=pytest.mark.slow) for name in ("transformer", "gpt"))]
)
def test_networks_for_sequences_are_quantized_dynamically(kind, reduce_range, tmp_path: Path):
    torch.manual_seed(0)
    config, expected = KINDS[kind]
    network = build_network(Blueprint(config=config, layout=TOKENS, num_outputs=4))
    x = torch.randint(1, 500, (64, 10)) * (torch.arange(10) < torch.randint(1, 11, (64, 1))).float()
    export_onnx(network, x, tmp_path / "float.onnx")
    for name in ("int8.onnx", "again.onnx"):
        quantize(
            tmp_path / "float.onnx",
            tmp_path / name,
            x[:0].numpy(),
            QuantizationOptions(mode="dynamic", reduce_range=reduce_range),
        )
    assert (tmp_path / "int8.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
    model = onnx.load(tmp_path / "int8.onnx")
    operators = [node.op_type for node in model.graph.node]
    assert {name: operators.count(name) for name in expected} == expected
    embedding = next(tensor for tensor in model.graph.initializer if 500 in tensor.dims)
    assert embedding.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    before, after = (create_session(tmp_path / name) for name in ("float.onnx", "int8.onnx"))
    for rows in (x, x[:1], x[:5, :4]):
        exact_BK = run_session(before, rows.numpy())
        np.testing.assert_allclose(run_session(after, rows.numpy()), exact_BK, atol=0.1 * np.abs(exact_BK).max())


@pytest.mark.slow
def test_static_quantization_covers_all_weights_of_a_transformer(tmp_path: Path):
    """Including layers behind attention, whose type is not inferred."""
    torch.manual_seed(0)
    config = Transformer(kind="transformer", width=32, num_layers=1)
    network = build_network(Blueprint(config=config, layout=TOKENS, num_outputs=4))
    x = torch.randint(1, 500, (64, 10)) * (torch.arange(10) < torch.randint(1, 11, (64, 1))).float()
    export_onnx(network, x, tmp_path / "float.onnx")
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", x.numpy(), QuantizationOptions(mode="static"))
    coverage = measure_integer_coverage(tmp_path / "int8.onnx")
    assert (coverage.share, coverage.float_operators) == (1.0, {"MultiHeadAttention": 1})


def test_the_first_layer_can_stay_in_float(exported, splits, tmp_path: Path):
    (first,) = find_first_layer(exported, "static")
    quantize(exported, tmp_path / "int8.onnx", splits.train.x[:200].numpy(), QuantizationOptions(keep_float=[first]))
    graph = onnx.load(tmp_path / "int8.onnx").graph
    in_float = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node.input[0] for node in layers if node.input[1] in in_float] == ["x"]
    assert len(layers) == 4


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_network_without_weights_has_no_first_layer(mode, tmp_path: Path):
    export_onnx(torch.nn.Tanh(), torch.zeros(2, 3), tmp_path / "tanh.onnx")
    assert find_first_layer(tmp_path / "tanh.onnx", mode) == ()


def test_dynamic_quantization_needs_no_calibration_rows(exported, splits, tmp_path: Path):
    before = exported.read_bytes()
    quantize(exported, tmp_path / "dynamic.onnx", splits.train.x[:0].numpy(), QuantizationOptions(mode="dynamic"))
    assert exported.read_bytes() == before
    x = splits.test.x.numpy()
    predictions = [run_session(create_session(path), x).argmax(1) for path in (exported, tmp_path / "dynamic.onnx")]
    assert (predictions[0] == predictions[1]).mean() > 0.95
    operators = {node.op_type for node in onnx.load(tmp_path / "dynamic.onnx").graph.node}
    assert {"Conv", "MatMulInteger"} <= operators
