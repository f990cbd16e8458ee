"""Compares our quantization of each kind of network with ONNX Runtime's defaults, on the same networks in one run.

    python benchmarks/compression/quantization.py [--rounds 100] [--families cnn lstm ...]

Networks have random weights: latencies and sizes do not depend on them, and errors are those of rounding only. Files
run in turns. A latency is the minimum over the rounds, since it is the least sensitive to other work on the machine,
as a ratio to the float file.
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


def generate_rows(layout: Layout, num: int) -> torch.Tensor:
    if layout.kind == "tokens":
        return torch.randint(1, layout.num_tokens or 2, (num, *layout.shape)).float()
    return torch.rand(num, *layout.shape) if layout.kind == "image" else torch.randn(num, *layout.shape)


def quantize_by_bloomery(source: Path, target: Path, x: np.ndarray, mode: str | None) -> None:
    """Quantizes in this mode, or the weights only where it is None."""
    if mode is None:
        quantize_weights(source, target, "int8")
    else:
        quantize(source, target, x, QuantizationOptions(mode=mode, amx=has_amx(cpu_flags())))  # type: ignore[arg-type]


def measure_min_ms(files: dict[str, Path], x: np.ndarray, rounds: int) -> dict[str, float]:
    """Returns the minimum latency of each file in milliseconds."""
    sessions = {name: create_session(path) for name, path in files.items()}
    min_ms = dict.fromkeys(files, float("inf"))
    for _ in range(rounds):
        for name, runtime in sessions.items():
            start_s = time.perf_counter()
            run_session(runtime, x)
            min_ms[name] = min(min_ms[name], (time.perf_counter() - start_s) * 1e3)
    return min_ms


def compare(family: str, folder: Path, rounds: int) -> None:
    config, layout, mode = FAMILIES[family]
    torch.manual_seed(0)
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=10))
    examples = generate_rows(layout, 256)
    x = examples.numpy()
    source = folder / f"{family}.onnx"
    export_onnx(network, examples[:40], source)
    quantizers: dict[str, Callable[[Path], object]] = {
        "Bloomery": lambda target: quantize_by_bloomery(source, target, x, mode),
        "ONNX Runtime static": lambda target: quantize_static(str(source), str(target), Rows(x)),
        "ONNX Runtime dynamic": lambda target: quantize_dynamic(str(source), str(target)),
    }
    files, errors = {"fp32": source}, {}
    for name, run_quantizer in quantizers.items():
        target = folder / f"{family}-{name.replace(' ', '-')}.onnx"
        try:
            run_quantizer(target)
            create_session(target)
            files[name] = target
        except Exception as error:  # the table lists failures too
            errors[name] = str(error).splitlines()[0][:120]
    float_outputs = run_session(create_session(source), x)
    latencies = {batch: measure_min_ms(files, x[:batch], rounds) for batch in (1, 32)}
    for name, path in files.items():
        differences = run_session(create_session(path), x) - float_outputs
        rms_error = np.sqrt(np.square(differences).mean()) / float_outputs.std()
        ratios = [min_ms[name] / min_ms["fp32"] for min_ms in latencies.values()]
        label = f"{name}, {mode or 'weights only'}" if name == "Bloomery" else name
        print(
            f"| {family} | {label}"
            f" | {path.stat().st_size:,} | {source.stat().st_size / path.stat().st_size:.2f}x smaller"
            f" | {ratios[0]:.2f} | {ratios[1]:.2f} | {rms_error:.4f} | {measure_integer_coverage(path).share:.0%} |",
            flush=True,
        )
    for name, reason in errors.items():
        print(f"| {family} | {name} | failed: {reason} | | | | | |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"onnxruntime {onnxruntime.__version__}; {', '.join(flag for flag in cpu_flags() if 'vnni' in flag)}\n")
    print("| family | file | bytes | size | latency, 1 row | 32 rows | RMS error / standard deviation | in integers |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for family in options.families:
            compare(family, Path(folder), options.rounds)


if __name__ == "__main__":
    main()
