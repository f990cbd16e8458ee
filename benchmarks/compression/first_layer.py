"""Measures whether a quantized network is faster with its first layer in float.

    python benchmarks/compression/first_layer.py [--rounds 300]

Networks have random weights, which do not affect latencies. The three files of each run in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from wanted import strided

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


def student(channels: list[int]) -> Cnn:
    return Cnn.model_validate(strided(channels, hidden=128))


NETWORKS: dict[str, tuple[Model, tuple[int, ...]]] = {
    "32 strided; 64; 64, 64": (student([32, 64, 64]), GREY),
    "16 strided; 64; 64, 64": (student([16, 64, 64]), GREY),
    "RGB: 32 strided; 64; 64, 64": (student([32, 64, 64]), RGB),
    "RGB: 32, 32; 64, 64": (Cnn(kind="cnn", channels=(32, 64), convolutions=2, hidden=128), RGB),
    "64; 128; 256": (Cnn(kind="cnn", channels=(64, 128, 256), hidden=256), GREY),
    "32; 64; 128": (Cnn(kind="cnn", channels=(32, 64, 128), hidden=128), GREY),
    "LeNet-5": (LeNet(kind="lenet"), GREY),
}
BATCHES = (1, 32)


def written(config: Model, shape: tuple[int, ...], folder: Path) -> dict[str, Path]:
    """Writes a network with random weights in fp32, in 8 bits, and with its first layer in float to `folder`."""
    torch.manual_seed(0)
    network = build_network(Blueprint(config=config, layout=Layout(kind="image", shape=shape), num_outputs=10)).eval()
    x = torch.rand(64, *shape)
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "int8", "first-in-float")}
    export_onnx(network, x, files["fp32"])
    tiles = has_amx(cpu_flags())
    quantize(files["fp32"], files["int8"], x.numpy(), QuantizationOptions(amx=tiles))
    kept = find_first_layer(files["fp32"], "static")
    quantize(files["fp32"], files["first-in-float"], x.numpy(), QuantizationOptions(amx=tiles, keep_float=kept))
    return files


def compare(config: Model, shape: tuple[int, ...], rounds: int) -> dict[str, list[Interval]]:
    """The time of each of the three files relative to fp32, by batch size."""
    with tempfile.TemporaryDirectory() as place:
        files = written(config, shape, Path(place))
        batches = [torch.rand(size, *shape).numpy() for size in BATCHES]
        timed = latency.compare_latency(latency.ComparedFiles(files, "fp32"), batches, rounds=rounds)
    return {name: [of_batch.ratio for of_batch in of_file] for name, of_file in timed.items()}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=300)
    rounds = asked.parse_args().rounds
    apply_engine_environment()
    require_state_folder()
    print("| network (`;`: pooled) | int8: 1 row | 32 rows | first in float: 1 row | 32 rows | gain: 1 row | 32 rows |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (config, shape) in NETWORKS.items():
        times = compare(config, shape, rounds)
        told = [
            f"{1 / time.value:.2f}x ({1 / time.high:.2f}-{1 / time.low:.2f})"
            for kind in ("int8", "first-in-float")
            for time in times[kind]
        ]
        gains = [
            f"{all_8.value / first.value:.2f}"
            for all_8, first in zip(times["int8"], times["first-in-float"], strict=True)
        ]
        print(f"| {name} | {' | '.join((*told, *gains))} |", flush=True)


if __name__ == "__main__":
    main()
