"""Convolutions with AMX tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.profiling.cpu_features import cpu_flags, has_amx, needs_reduced_range


class Convolutions(nn.Module):
    """A small, a large and a grouped convolution, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Conv2d(1, 64, 3)
        self.large = nn.Conv2d(64, 64, 3)
        self.grouped = nn.Conv2d(64, 128, 3, groups=2)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.small, self.large, self.grouped):
            x = layer(x).relu()
        return self.head(x.mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def network_file(tmp_path_factory) -> tuple[Path, np.ndarray]:
    torch.manual_seed(0)
    x = torch.randn(40, 1, 9, 9)
    path = tmp_path_factory.mktemp("tiles") / "fp32.onnx"
    export_onnx(Convolutions(), x, path)
    return path, x.numpy()


def zero_points_of(path: Path) -> dict[str, set[int]]:
    """The zero point of each weight."""
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    ending = "weight_zero_point"
    return {
        name.removesuffix("." + ending): set(zeros.tolist()) for name, zeros in tensors.items() if name.endswith(ending)
    }


@pytest.mark.skipif(needs_reduced_range(cpu_flags()), reason="sums of products saturate on this processor")
@pytest.mark.parametrize("reduce_range", [False, True])
def test_large_convolutions_get_another_zero_point_and_outputs_keep_their_bits(network_file, tmp_path, reduce_range):
    source, x = network_file
    without_amx, with_amx = tmp_path / "usual.onnx", tmp_path / "tiled.onnx"
    quantize(source, without_amx, x, QuantizationOptions(reduce_range=reduce_range))
    quantize(source, with_amx, x, QuantizationOptions(reduce_range=reduce_range, amx=True))
    assert zero_points_of(without_amx) == {"small": {0}, "large": {0}, "grouped": {0}, "head": {0}}
    assert zero_points_of(with_amx) == {"small": {0}, "large": {-1}, "grouped": {0}, "head": {0}}
    assert np.array_equal(run_session(create_session(without_amx), x), run_session(create_session(with_amx), x))
    assert measure_integer_coverage(with_amx) == measure_integer_coverage(without_amx)
    onnx.checker.check_model(onnx.load(with_amx))


def test_float_layers_do_not_change(network_file, tmp_path: Path):
    source, x = network_file
    names = [node.name for node in onnx.load(source).graph.node if node.op_type == "Conv"]
    quantize(source, tmp_path / "float.onnx", x, QuantizationOptions(keep_float=names, amx=True))
    assert zero_points_of(tmp_path / "float.onnx") == {"head": {0}}


def test_dynamic_files_do_not_change(network_file, tmp_path: Path):
    source, x = network_file
    for name, amx in (("usual", False), ("tiled", True)):
        quantize(source, tmp_path / name, x, QuantizationOptions(mode="dynamic", amx=amx))
    assert (tmp_path / "usual").read_bytes() == (tmp_path / "tiled").read_bytes()


@pytest.mark.parametrize(
    ("flags", "expected"), [(("avx512_vnni", "amx_tile", "amx_int8"), True), (("avx512_vnni", "amx_bf16"), False)]
)
def test_processors_with_the_flag_amx_int8_have_amx(flags, expected):
    assert has_amx(flags) == expected
