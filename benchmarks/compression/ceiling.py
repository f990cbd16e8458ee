"""Measures how much of the highest speed-up by 8 bits our wide networks reach on this machine.

    python benchmarks/compression/ceiling.py [--rounds 200] [--batches 1 32 128 512] [--networks mlp transformer cnn]
        [--profile]

The ceiling is the speed-up of ONNX Runtime's own kernels: square matrix products of several sizes, in fp32 and
quantized by `quantize`, static and dynamic. The best ratio of each batch size counts. The ceiling depends on the batch
size, since memory bandwidth limits a single row and arithmetic limits many rows. A network's share of it is therefore
printed twice: of the ceiling at the same batch size, and of the highest ceiling. A share may exceed 1, since a network
has products of several shapes, and float kernels are not equally fast for all of them.

Networks are wide and have random weights, which do not affect latencies. Files run in turns on one thread. A ratio is
computed within a round; the table has the median over the rounds. `--profile` prints the time of each operator.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from bloomery.data_contracts.records.records import Latency
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import QuantizationMode
from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import INPUT, OUTPUT
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Mlp, Model, Transformer
from bloomery.models.profiling import latency
from bloomery.models.profiling.cpu_features import cpu_flags, has_amx

SIZES = (1024, 2048, 4096)
MODES: tuple[QuantizationMode, ...] = ("static", "dynamic")
CALIBRATION_ROWS = 64


class WideNetwork(NamedTuple):
    config: Model
    layout: Layout
    mode: QuantizationMode
    max_rows: int  # more rows would take seconds per round


NETWORKS: dict[str, WideNetwork] = {
    "mlp": WideNetwork(Mlp(kind="mlp", hidden=(4096, 4096)), Layout(kind="flat", shape=(2048,)), "static", 1024),
    "transformer": WideNetwork(
        Transformer(kind="transformer", width=1024, num_layers=2, num_heads=8),
        Layout(kind="tokens", shape=(32,), num_tokens=4000),
        "dynamic",
        32,
    ),
    "cnn": WideNetwork(
        Cnn(kind="cnn", channels=(128, 256), convolutions=2, hidden=256),
        Layout(kind="image", shape=(3, 32, 32)),
        "static",
        32,
    ),
}


def write_product(size: int, path: Path) -> None:
    """Writes an ONNX file with one product by a `size` x `size` weight matrix."""
    weights = np.random.default_rng(0).standard_normal((size, size), np.float32) / np.float32(size) ** 0.5
    input_and_output = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in (INPUT, OUTPUT)
    ]
    node = helper.make_node("MatMul", [INPUT, "weights"], [OUTPUT], name="product")
    graph = helper.make_graph(
        [node], "product", input_and_output[:1], input_and_output[1:], [numpy_helper.from_array(weights, "weights")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def measure_ceilings(folder: Path, batches: list[int], rounds: int) -> dict[int, float]:
    """Prints the speed-ups of matrix products by 8 bits, and returns the highest of each batch size."""
    ceilings = dict.fromkeys(batches, 0.0)
    for size in SIZES:
        files = {name: folder / f"product-{name}.onnx" for name in ("fp32", *MODES)}
        write_product(size, files["fp32"])
        x = np.random.default_rng(1).standard_normal((max(batches), size), np.float32)
        for mode in MODES:
            quantize(files["fp32"], files[mode], x[:CALIBRATION_ROWS], QuantizationOptions(mode=mode))
        times = latency.compare_latency(
            latency.ComparedFiles(files, "fp32"), [x[:batch] for batch in batches], rounds=rounds
        )
        for index, batch in enumerate(batches):
            latencies = {name: times[name][index] for name in files}
            print(
                f"| {size} | {batch} | {latencies['fp32'].p50_ms:.3f} ms | {_format_speed_up(latencies['static'])}",
                end="",
            )
            print(f" | {_format_speed_up(latencies['dynamic'])} |", flush=True)
            ceilings[batch] = max(ceilings[batch], *(1 / latencies[mode].ratio.value for mode in MODES))
    return ceilings


def _format_speed_up(latency: Latency) -> str:
    """Formats the speed-up over fp32 with its confidence interval."""
    return f"{1 / latency.ratio.value:.2f}x ({1 / latency.ratio.high:.2f} to {1 / latency.ratio.low:.2f})"


def generate_rows(layout: Layout, num: int) -> torch.Tensor:
    if layout.kind == "tokens":
        return torch.randint(1, layout.num_tokens or 2, (num, *layout.shape)).float()
    return torch.randn(num, *layout.shape)


def write_files(name: str, folder: Path) -> tuple[dict[str, Path], np.ndarray]:
    """Writes the network in fp32 and in 8 bits. Returns both files, and rows for the network."""
    config, layout, mode, max_rows = NETWORKS[name]
    torch.manual_seed(0)
    examples = generate_rows(layout, max(max_rows, CALIBRATION_ROWS))
    files = {kind: folder / f"{name}-{kind}.onnx" for kind in ("fp32", "int8")}
    export_onnx(build_network(Blueprint(config=config, layout=layout, num_outputs=10)), examples[:40], files["fp32"])
    uses_amx = has_amx(cpu_flags())
    quantize(
        files["fp32"], files["int8"], examples[:CALIBRATION_ROWS].numpy(), QuantizationOptions(mode=mode, amx=uses_amx)
    )
    return files, examples.numpy()


def measure_network(name: str, ceilings: dict[int, float], rounds: int, files: dict[str, Path], x: np.ndarray) -> None:
    batches = [batch for batch in ceilings if batch <= NETWORKS[name].max_rows]
    times = latency.compare_latency(
        latency.ComparedFiles(files, "fp32"), [x[:batch] for batch in batches], rounds=rounds
    )
    share = measure_integer_coverage(files["int8"]).share
    for batch, fp32, int8 in zip(batches, times["fp32"], times["int8"], strict=True):
        speed_up = 1 / int8.ratio.value
        print(
            f"| {name}, {NETWORKS[name].mode} | {batch} | {fp32.p50_ms:.3f} ms | {_format_speed_up(int8)}"
            f" | {speed_up / ceilings[batch]:.0%} | {speed_up / max(ceilings.values()):.0%} | {share:.0%} |",
            flush=True,
        )


def profile(name: str, files: dict[str, Path], x: np.ndarray, repeats: int = 20) -> None:
    """Prints the microseconds per batch of the slowest operators of each file."""
    for kind, path in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling, options.log_severity_level = 1, True, 3
        options.profile_file_prefix = str(path.with_suffix(""))
        runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(repeats):
            runtime.run(None, {INPUT: x})
        durations: Counter[str] = Counter()
        for event in json.loads(Path(runtime.end_profiling()).read_text()):
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                durations[event["args"]["op_name"]] += event["dur"]
        slowest = ", ".join(f"{operator} {us / repeats:.0f}" for operator, us in durations.most_common(8))
        print(f"{name}, {kind}, {len(x)} rows: {slowest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128, 512])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--profile", action="store_true", help="print the time of each operator")
    options = parser.parse_args()
    torch.set_num_threads(1)
    flags = [flag for flag in cpu_flags() if "vnni" in flag or "amx" in flag]
    print(f"onnxruntime {onnxruntime.__version__}; {', '.join(flags) or 'no VNNI'}; one thread\n")
    with tempfile.TemporaryDirectory() as folder:
        print("| product | rows | fp32 | static | dynamic |\n| ---: | ---: | ---: | ---: | ---: |")
        ceilings = measure_ceilings(Path(folder), options.batches, options.rounds)
        summary = ", ".join(f"{speed_up:.2f}x for {batch} rows" for batch, speed_up in ceilings.items())
        print(f"\nThe ceiling: {summary}; at most {max(ceilings.values()):.2f}x.\n")
        print("| network | rows | fp32 | int8 | share of the ceiling | of the highest ceiling | weights in integers |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        networks = {name: write_files(name, Path(folder)) for name in options.networks}
        for name, (files, x) in networks.items():
            measure_network(name, ceilings, options.rounds, files, x)
        if options.profile:
            print()
            for name, (files, x) in networks.items():
                profile(name, files, x[: min(32, NETWORKS[name].max_rows)])


if __name__ == "__main__":
    main()
