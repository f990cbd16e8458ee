"""Measures whether a quantized network is faster with its first layer in float.

    python benchmarks/compression/first_layer.py [--rounds 300]

Networks have random weights, which do not affect latencies. Each has three files: fp32, 8 bits, and 8 bits with the
first layer in float. They run in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from candidates import strided_cnn

from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.quantization.post_training import QuantizationOptions, find_first_layer, quantize
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, LeNet, Model
from bloomery.models.profiling import latency
from bloomery.models.profiling.cpu_features import cpu_flags, has_amx
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder

GREY, RGB = (1, 28, 28), (3, 32, 32)


def student_config(channels: list[int]) -> Cnn:
    return Cnn.model_validate(strided_cnn(channels, hidden=128))


NETWORKS: dict[str, tuple[Model, tuple[int, ...]]] = {
    "32 strided; 64; 64, 64": (student_config([32, 64, 64]), GREY),
    "16 strided; 64; 64, 64": (student_config([16, 64, 64]), GREY),
    "RGB: 32 strided; 64; 64, 64": (student_config([32, 64, 64]), RGB),
    "RGB: 32, 32; 64, 64": (Cnn(kind="cnn", channels=(32, 64), convolutions=2, hidden=128), RGB),
    "64; 128; 256": (Cnn(kind="cnn", channels=(64, 128, 256), hidden=256), GREY),
    "32; 64; 128": (Cnn(kind="cnn", channels=(32, 64, 128), hidden=128), GREY),
    "LeNet-5": (LeNet(kind="lenet"), GREY),
}
BATCHES = (1, 32)


def write_files(config: Model, shape: tuple[int, ...], folder: Path) -> dict[str, Path]:
    """Writes a network with random weights in fp32, in 8 bits, and with its first layer in float to `folder`."""
    torch.manual_seed(0)
    network = build_network(Blueprint(config=config, layout=Layout(kind="image", shape=shape), num_outputs=10)).eval()
    x = torch.rand(64, *shape)
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "int8", "first-in-float")}
    export_onnx(network, x, files["fp32"])
    uses_amx = has_amx(cpu_flags())
    quantize(files["fp32"], files["int8"], x.numpy(), QuantizationOptions(amx=uses_amx))
    first_layer = find_first_layer(files["fp32"], "static")
    quantize(
        files["fp32"], files["first-in-float"], x.numpy(), QuantizationOptions(amx=uses_amx, keep_float=first_layer)
    )
    return files


def compare(config: Model, shape: tuple[int, ...], rounds: int) -> dict[str, list[Interval]]:
    """Returns the latency of each file relative to fp32, one ratio for each batch size."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(config, shape, Path(folder))
        batches = [torch.rand(size, *shape).numpy() for size in BATCHES]
        latencies = latency.compare_latency(latency.ComparedFiles(files, "fp32"), batches, rounds=rounds)
    return {name: [batch.ratio for batch in file_latencies] for name, file_latencies in latencies.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    apply_engine_environment()
    require_state_folder()
    print(
        "| network (`;`: pooling) | int8: 1 row | 32 rows | first in float: 1 row | 32 rows | gain: 1 row | 32 rows |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (config, shape) in NETWORKS.items():
        ratios = compare(config, shape, rounds)
        options = [
            f"{1 / ratio.value:.2f}x ({1 / ratio.high:.2f}-{1 / ratio.low:.2f})"
            for kind in ("int8", "first-in-float")
            for ratio in ratios[kind]
        ]
        gains = [
            f"{int8.value / first_in_float.value:.2f}"
            for int8, first_in_float in zip(ratios["int8"], ratios["first-in-float"], strict=True)
        ]
        print(f"| {name} | {' | '.join((*options, *gains))} |", flush=True)


if __name__ == "__main__":
    main()
