"""Measures how much of the possible speed-up by 8 bits our networks reach on this machine.

    python benchmarks/compression/ceiling.py [--rounds 200] [--batches 1 32 128 512] [--networks mlp transformer cnn]
        [--profile]

The ceiling is that of ONNX Runtime's own kernels: a square matrix product in fp32, and the same product quantized by
our `quantize`, static and dynamic, for several sizes; the best ratio of each batch size counts. It depends on the batch
size, since memory bandwidth limits a single row and arithmetic limits many. So a network's share is printed twice: of
the ceiling at its own batch size, and of the highest at any. It may exceed 1: a network has products of several
shapes, and float kernels are not equally good for all.

Networks are wide and have random weights, which do not affect latencies. Files run in turns on one thread; a ratio is
the median over the rounds of the ratio within a round. `--profile` prints the time of each operator.
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
ROUTES: tuple[QuantizationMode, ...] = ("static", "dynamic")
CALIBRATION_ROWS = 64


class Wide(NamedTuple):
    config: Model
    layout: Layout
    route: QuantizationMode
    most_rows: int  # more would take seconds a round


NETWORKS: dict[str, Wide] = {
    "mlp": Wide(Mlp(kind="mlp", hidden=(4096, 4096)), Layout(kind="flat", shape=(2048,)), "static", 1024),
    "transformer": Wide(
        Transformer(kind="transformer", width=1024, num_layers=2, num_heads=8),
        Layout(kind="tokens", shape=(32,), num_tokens=4000),
        "dynamic",
        32,
    ),
    "cnn": Wide(
        Cnn(kind="cnn", channels=(128, 256), convolutions=2, hidden=256),
        Layout(kind="image", shape=(3, 32, 32)),
        "static",
        32,
    ),
}


def product(size: int, path: Path) -> None:
    """A single product with a `size` x `size` weight, as an ONNX file."""
    weights = np.random.default_rng(0).standard_normal((size, size), np.float32) / np.float32(size) ** 0.5
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in (INPUT, OUTPUT)]
    node = helper.make_node("MatMul", [INPUT, "weights"], [OUTPUT], name="product")
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(weights, "weights")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def ceilings(folder: Path, batches: list[int], rounds: int) -> dict[int, float]:
    """By batch size, the highest speed-up of a product by 8 bits over fp32."""
    best = dict.fromkeys(batches, 0.0)
    for size in SIZES:
        files = {name: folder / f"product-{name}.onnx" for name in ("fp32", *ROUTES)}
        product(size, files["fp32"])
        x = np.random.default_rng(1).standard_normal((max(batches), size), np.float32)
        for route in ROUTES:
            quantize(files["fp32"], files[route], x[:CALIBRATION_ROWS], QuantizationOptions(mode=route))
        times = latency.compare_latency(
            latency.ComparedFiles(files, "fp32"), [x[:batch] for batch in batches], rounds=rounds
        )
        for place, batch in enumerate(batches):
            here = {name: times[name][place] for name in files}
            print(f"| {size} | {batch} | {here['fp32'].p50_ms:.3f} ms | {_gain(here['static'])}", end="")
            print(f" | {_gain(here['dynamic'])} |", flush=True)
            best[batch] = max(best[batch], *(1 / here[route].ratio.value for route in ROUTES))
    return best


def _gain(one: Latency) -> str:
    """The speed-up over fp32, with its limits."""
    return f"{1 / one.ratio.value:.2f}x ({1 / one.ratio.high:.2f} to {1 / one.ratio.low:.2f})"


def rows_of(layout: Layout, num: int) -> torch.Tensor:
    if layout.kind == "tokens":
        return torch.randint(1, layout.num_tokens or 2, (num, *layout.shape)).float()
    return torch.randn(num, *layout.shape)


def files_of(name: str, folder: Path) -> tuple[dict[str, Path], np.ndarray]:
    """The network in fp32 and quantized by `quantize`, and rows for it."""
    config, layout, route, most_rows = NETWORKS[name]
    torch.manual_seed(0)
    examples = rows_of(layout, max(most_rows, CALIBRATION_ROWS))
    files = {kind: folder / f"{name}-{kind}.onnx" for kind in ("fp32", "int8")}
    export_onnx(build_network(Blueprint(config=config, layout=layout, num_outputs=10)), examples[:40], files["fp32"])
    tiles = has_amx(cpu_flags())
    quantize(
        files["fp32"], files["int8"], examples[:CALIBRATION_ROWS].numpy(), QuantizationOptions(mode=route, amx=tiles)
    )
    return files, examples.numpy()


def judge(name: str, best: dict[int, float], rounds: int, files: dict[str, Path], x: np.ndarray) -> None:
    batches = [batch for batch in best if batch <= NETWORKS[name].most_rows]
    times = latency.compare_latency(
        latency.ComparedFiles(files, "fp32"), [x[:batch] for batch in batches], rounds=rounds
    )
    share = measure_integer_coverage(files["int8"]).share
    for batch, fp32, int8 in zip(batches, times["fp32"], times["int8"], strict=True):
        gain = 1 / int8.ratio.value
        print(
            f"| {name}, {NETWORKS[name].route} | {batch} | {fp32.p50_ms:.3f} ms | {_gain(int8)}"
            f" | {gain / best[batch]:.0%} | {gain / max(best.values()):.0%} | {share:.0%} |",
            flush=True,
        )


def profile(name: str, files: dict[str, Path], x: np.ndarray, times: int = 20) -> None:
    """Prints the time of each operator of each file, in microseconds a batch."""
    for kind, path in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_profiling, options.log_severity_level = 1, True, 3
        options.profile_file_prefix = str(path.with_suffix(""))
        runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(times):
            runtime.run(None, {INPUT: x})
        spent: Counter[str] = Counter()
        for event in json.loads(Path(runtime.end_profiling()).read_text()):
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"]
        told = ", ".join(f"{operator} {taken / times:.0f}" for operator, taken in spent.most_common(8))
        print(f"{name}, {kind}, {len(x)} rows: {told}")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=200)
    asked.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128, 512])
    asked.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    asked.add_argument("--profile", action="store_true")
    chosen = asked.parse_args()
    torch.set_num_threads(1)
    able = [flag for flag in cpu_flags() if "vnni" in flag or "amx" in flag]
    print(f"onnxruntime {onnxruntime.__version__}; {', '.join(able) or 'no VNNI'}; one thread\n")
    with tempfile.TemporaryDirectory() as folder:
        print("| product | rows | fp32 | static | dynamic |\n| ---: | ---: | ---: | ---: | ---: |")
        best = ceilings(Path(folder), chosen.batches, chosen.rounds)
        told = ", ".join(f"{gain:.2f}x for {batch} rows" for batch, gain in best.items())
        print(f"\nThe ceiling: {told}; at most {max(best.values()):.2f}x.\n")
        print("| network | rows | fp32 | int8 | of the ceiling | of the highest | weights in integers |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        made = {name: files_of(name, Path(folder)) for name in chosen.networks}
        for name, (files, x) in made.items():
            judge(name, best, chosen.rounds, files, x)
        if chosen.profile:
            print()
            for name, (files, x) in made.items():
                profile(name, files, x[: min(32, NETWORKS[name].most_rows)])


if __name__ == "__main__":
    main()
