"""Counts and sizes of ONNX files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.onnx_storage.encoder import encode
from bloomery.models.onnx_storage.sizes import count_nonzero, measure_coded_bytes, measure_zstd_bytes
from bloomery.models.onnx_storage.zstd_packing import minify


def write(path, weights):
    """An ONNX file that multiplies with `weights` (5, K) and adds ones."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), onnx.helper.make_node("Add", ["y", "b"], ["logits"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 5])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [
            onnx.numpy_helper.from_array(weights.astype(np.float32), "w"),
            onnx.numpy_helper.from_array(np.ones(weights.shape[1], np.float32), "b"),
        ],
    )
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_zeros_are_not_counted_as_floats_or_as_integers(tmp_path, mode):
    weights = np.linspace(-1, 1, 40).reshape(5, 8)
    weights[:, 3:] = 0
    weights[0, 0] = 1.0  # the range has both ends
    file = write(tmp_path / "fp32.onnx", weights)
    assert count_nonzero(file) == 15 + 8
    quantized = tmp_path / "int8.onnx"
    quantize(
        file,
        quantized,
        np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32),
        QuantizationOptions(mode=mode),
    )
    assert 15 <= count_nonzero(quantized) <= 15 + 8  # biases may be rounded to zero


def test_the_count_of_a_trained_network_is_its_number_of_weights(exported, quantized, trained):
    parameters = sum(parameter.numel() for parameter in trained.network.parameters())
    assert 0.95 * parameters < count_nonzero(exported) <= 1.01 * parameters
    assert 0.95 * parameters < count_nonzero(quantized) <= 1.01 * parameters


def test_zeros_reduce_the_compressed_size_only(tmp_path):
    random = np.random.default_rng(0).normal(size=(5, 1000))
    dense, sparse = write(tmp_path / "full.onnx", random), write(tmp_path / "sparse.onnx", random * (random > 1.5))
    assert dense.stat().st_size == sparse.stat().st_size
    assert measure_zstd_bytes(sparse) < 0.3 * measure_zstd_bytes(dense)
    assert measure_zstd_bytes(dense) == measure_zstd_bytes(dense) <= dense.stat().st_size + 50


def test_the_coded_size_is_the_length_of_the_coded_file(few_valued):
    assert (
        measure_coded_bytes(few_valued) == len(encode(minify(few_valued.read_bytes()))) < measure_zstd_bytes(few_valued)
    )


def test_a_large_file_has_no_coded_size(tmp_path):
    small, large = (write(tmp_path / f"{width}.onnx", np.ones((5, width))) for width in (160_000, 200_000))
    assert measure_coded_bytes(small) is not None
    assert measure_coded_bytes(large) is None
