"""Integer coverage of quantized files, and 7-bit weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Rnn
from bloomery.models.onnx_storage.encoder import encode
from bloomery.models.onnx_storage.zstd_packing import pack_for_zstd
from bloomery.models.profiling.cpu_features import needs_reduced_range


def test_a_float_file_runs_in_floats(exported):
    coverage = measure_integer_coverage(exported)
    assert coverage.integer_operators == {}
    assert coverage.share == 0
    assert sum(coverage.float_operators.values()) == 4


def test_a_static_convolutional_file_runs_in_integers_only(quantized):
    coverage = measure_integer_coverage(quantized)
    assert coverage.integer_operators == {"QGemm": 2, "QLinearConv": 2}
    assert (coverage.float_operators, coverage.share) == ({}, 1)


@pytest.mark.parametrize("compress", [encode, pack_for_zstd])
def test_a_compressed_file_is_decompressed_first(compress, quantized, tmp_path: Path):
    (tmp_path / "stored").write_bytes(compress(quantized.read_bytes()))
    assert measure_integer_coverage(tmp_path / "stored") == measure_integer_coverage(quantized)


def test_float_layers_count_by_their_weights(exported, splits, tmp_path: Path):
    quantize(exported, tmp_path / "dynamic.onnx", splits.train.x[:0].numpy(), QuantizationOptions(mode="dynamic"))
    coverage = measure_integer_coverage(tmp_path / "dynamic.onnx")
    assert coverage.float_operators == {"Conv": 2}
    # Convolutions of 1 x 8 and 8 x 16 channels, dense layers of 64 x 32 and 32 x 10.
    dense, convolved = 64 * 32 + 32 * 10, 9 * 8 + 9 * 8 * 16
    assert coverage.share == pytest.approx(dense / (dense + convolved), abs=0.02)  # channels are padded to 16


@pytest.mark.parametrize(("cell", "share"), [("lstm", 1.0), ("gru", pytest.approx(0.02, abs=0.02))])
def test_lstms_run_in_integers_and_grus_do_not(cell, share, tmp_path: Path):
    layout = Layout(kind="sequence", shape=(6, 5))
    network = build_network(Blueprint(config=Rnn(kind="rnn", cell=cell, hidden=32), layout=layout, num_outputs=3))
    export_onnx(network, torch.randn(4, 6, 5), tmp_path / "float.onnx")
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", np.empty(0), QuantizationOptions(mode="dynamic"))
    coverage = measure_integer_coverage(tmp_path / "int8.onnx")
    assert coverage.share == share
    assert ("DynamicQuantizeLSTM" in coverage.integer_operators) == (cell == "lstm")
    assert coverage.float_operators == ({} if cell == "lstm" else {"GRU": 1})


def test_logits_have_more_than_256_levels(quantized, splits):
    assert "DequantizeLinear" not in {node.op_type for node in onnx.load(quantized).graph.node[-1:]}
    logits_BK = run_session(create_session(quantized), splits.test.x.numpy())
    assert len(np.unique(logits_BK)) > 1000


def test_an_outlier_does_not_widen_the_range_of_percentile(exported, splits, tmp_path: Path):
    rows = splits.train.x.numpy().copy()
    rows[0, 0, 0, 0] = 100.0
    widths = {}
    for method in ("minmax", "percentile"):
        quantize(exported, tmp_path / f"{method}.onnx", rows, QuantizationOptions(calibration_method=method))
        scales = {tensor.name: tensor for tensor in onnx.load(tmp_path / f"{method}.onnx").graph.initializer}
        widths[method] = 255 * float(onnx.numpy_helper.to_array(scales["x_scale"]))
    expected_width = float(splits.train.x.max() - splits.train.x.min())
    assert widths["minmax"] > 100
    assert widths["percentile"] < 1.2 * expected_width


def test_entropy_chooses_other_ranges_than_minmax(exported, quantized, splits, tmp_path: Path):
    quantize(
        exported,
        tmp_path / "entropy.onnx",
        splits.train.x[:200].numpy(),
        QuantizationOptions(calibration_method="entropy"),
    )
    assert (tmp_path / "entropy.onnx").read_bytes() != quantized.read_bytes()
    x = splits.test.x.numpy()
    predictions = [run_session(create_session(path), x).argmax(1) for path in (exported, tmp_path / "entropy.onnx")]
    assert (predictions[0] == predictions[1]).mean() > 0.95


def test_reduce_range_gives_7_bit_weights(exported, splits, tmp_path: Path):
    quantize(exported, tmp_path / "reduced.onnx", splits.train.x[:50].numpy(), QuantizationOptions(reduce_range=True))
    levels = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "reduced.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    assert len(levels) == 4
    assert all(np.abs(values.astype(int)).max() == 64 for values in levels)


@pytest.mark.parametrize(
    ("flags", "is_needed"),
    [
        (("fma", "avx2"), True),
        (("avx2", "avx512f"), True),
        (("avx2", "avx_vnni"), False),
        (("avx2", "avx512_vnni"), False),
        (("asimd", "sve"), False),
    ],
)
def test_an_x86_processor_without_vnni_needs_7_bits(flags, is_needed):
    assert needs_reduced_range(flags) == is_needed
