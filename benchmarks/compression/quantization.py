"""Compares our quantization of each kind of network with ONNX Runtime's defaults, on the same networks in one run.

    python benchmarks/compression/quantization.py [--rounds 100] [--families cnn lstm ...]

Networks have random weights: latencies and sizes do not depend on them, and errors are those of rounding only. Files
run in turns. A latency is the least of all rounds, which other work on the machine disturbs least, as a ratio to the
float file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.compression.quantization.weight_only import quantize_weights
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import INPUT, create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, LeNet, Mlp, Model, Rnn, Transformer
from bloomery.models.profiling.cpu_features import cpu_flags, has_amx

IMAGE = Layout(kind="image", shape=(1, 28, 28))
FLAT = Layout(kind="flat", shape=(64,))
STEPS = Layout(kind="sequence", shape=(24, 11))
TOKENS = Layout(kind="tokens", shape=(24,), num_tokens=2000)
# Network, layout, and quantization mode; None: weight-only.
FAMILIES: dict[str, tuple[Model, Layout, str | None]] = {
    "lenet": (LeNet(kind="lenet"), IMAGE, "static"),
    "cnn": (Cnn(kind="cnn", channels=(32, 64), hidden=128), IMAGE, "static"),
    "mlp": (Mlp(kind="mlp", hidden=(512, 512)), FLAT, "static"),
    "lstm": (Rnn(kind="rnn", hidden=128), STEPS, "dynamic"),
    "gru": (Rnn(kind="rnn", cell="gru", hidden=128), STEPS, None),
    "transformer": (Transformer(kind="transformer", width=128, num_layers=2), TOKENS, "dynamic"),
}


class Rows(CalibrationDataReader):
    def __init__(self, x: np.ndarray) -> None:
        self._batches = iter([{INPUT: x}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def rows_of(layout: Layout, num: int) -> torch.Tensor:
    if layout.kind == "tokens":
        return torch.randint(1, layout.num_tokens or 2, (num, *layout.shape)).float()
    return torch.rand(num, *layout.shape) if layout.kind == "image" else torch.randn(num, *layout.shape)


def ours(source: Path, target: Path, x: np.ndarray, how: str | None) -> None:
    if how is None:
        quantize_weights(source, target, "int8")
    else:
        quantize(source, target, x, QuantizationOptions(mode=how, amx=has_amx(cpu_flags())))  # type: ignore[arg-type]


def least_ms(files: dict[str, Path], x: np.ndarray, rounds: int) -> dict[str, float]:
    sessions = {name: create_session(path) for name, path in files.items()}
    least = dict.fromkeys(files, float("inf"))
    for _ in range(rounds):
        for name, runtime in sessions.items():
            began = time.perf_counter()
            run_session(runtime, x)
            least[name] = min(least[name], (time.perf_counter() - began) * 1e3)
    return least


def compare(family: str, folder: Path, rounds: int) -> None:
    config, layout, how = FAMILIES[family]
    torch.manual_seed(0)
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=10))
    examples = rows_of(layout, 256)
    x = examples.numpy()
    source = folder / f"{family}.onnx"
    export_onnx(network, examples[:40], source)
    makers: dict[str, Callable[[Path], object]] = {
        "ours": lambda target: ours(source, target, x, how),
        "ort static": lambda target: quantize_static(str(source), str(target), Rows(x)),
        "ort dynamic": lambda target: quantize_dynamic(str(source), str(target)),
    }
    files, failed = {"fp32": source}, {}
    for name, make in makers.items():
        target = folder / f"{family}-{name.replace(' ', '-')}.onnx"
        try:
            make(target)
            create_session(target)
            files[name] = target
        except Exception as failure:  # a failure of a peer is a result too
            failed[name] = str(failure).splitlines()[0][:120]
    exact = run_session(create_session(source), x)
    times = {batch: least_ms(files, x[:batch], rounds) for batch in (1, 32)}
    for name, path in files.items():
        error = np.sqrt(np.square(run_session(create_session(path), x) - exact).mean()) / exact.std()
        ratios = [times[batch][name] / times[batch]["fp32"] for batch in times]
        said = f"{name}, {how or 'weights alone'}" if name == "ours" else name
        print(
            f"| {family} | {said}"
            f" | {path.stat().st_size:,} | {source.stat().st_size / path.stat().st_size:.2f}x smaller"
            f" | {ratios[0]:.2f} | {ratios[1]:.2f} | {error:.4f} | {measure_integer_coverage(path).share:.0%} |",
            flush=True,
        )
    for name, why in failed.items():
        print(f"| {family} | {name} | failed: {why} | | | | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"onnxruntime {onnxruntime.__version__}; {', '.join(flag for flag in cpu_flags() if 'vnni' in flag)}\n")
    print("| family | file | bytes | size | time, 1 row | time, 32 rows | error / spread | in integers |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for family in chosen.families:
            compare(family, Path(folder), chosen.rounds)


if __name__ == "__main__":
    main()
