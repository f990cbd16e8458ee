"""Static quantization to 8 bits."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.quantization import quantize
from models.runtime import answer, session


def test_the_arithmetic_is_in_8_bits(quantized):
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
        assert list(scales.dims) == [values.dims[0]]  # a scale for each channel


def test_batch_normalisation_is_folded_away(quantized):
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(quantized).graph.node}


def test_most_answers_stay(exported, quantized, parts):
    x, truth = parts.test.x.numpy(), parts.test.y.numpy()
    before, after = (answer(session(path), x).argmax(1) for path in (exported, quantized))
    assert (before == truth).mean() > 0.85
    assert (before == after).mean() > 0.95


def test_the_file_is_smaller(exported, quantized):
    assert quantized.stat().st_size < exported.stat().st_size


def test_the_same_network_becomes_the_same_bytes_anywhere(exported, quantized, parts, tmp_path: Path):
    quantize(exported, tmp_path / "another name.onnx", parts.train.x[:200].numpy())
    assert (tmp_path / "another name.onnx").read_bytes() == quantized.read_bytes()


def test_the_file_is_valid_and_says_nothing_of_the_machine_it_was_made_on(quantized):
    model = onnx.load(quantized)
    onnx.checker.check_model(model)
    assert not model.metadata_props
    assert b"/tmp" not in quantized.read_bytes()


def test_ranges_come_from_the_calibration_rows(exported, quantized, parts, tmp_path: Path):
    quantize(exported, tmp_path / "other.onnx", parts.train.x[:200].numpy() * 3)
    assert (tmp_path / "other.onnx").read_bytes() != quantized.read_bytes()


@pytest.mark.parametrize("num_rows", [1, 64, 65])
def test_any_number_of_calibration_rows_will_do(exported, parts, tmp_path: Path, num_rows):
    quantize(exported, tmp_path / "few.onnx", parts.train.x[:num_rows].numpy())
    assert np.isfinite(answer(session(tmp_path / "few.onnx"), parts.test.x[:3].numpy())).all()


def test_the_source_and_the_level_of_logging_are_left_as_they_were(exported, parts, tmp_path: Path):
    before, level = exported.read_bytes(), logging.root.level
    quantize(exported, tmp_path / "again.onnx", parts.train.x[:8].numpy())
    assert (exported.read_bytes(), logging.root.level) == (before, level)
