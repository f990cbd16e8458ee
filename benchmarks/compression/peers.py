"""Compares our candidates with ONNX Runtime's, Olive's and Neural Compressor's files of the same networks, in one run.

    python -m venv PEERS
    PEERS/bin/pip install torch==2.13.0 onnxruntime==1.31.1 olive-ai neural-compressor requests py-cpuinfo psutil \
        prettytable scipy tabulate datasets
    PEERS/bin/pip install --no-deps torchao onnx-neural-compressor
    BLOOMERY_DATA=… python benchmarks/compression/peers.py --peers PEERS/bin/python [--rounds 300] [recipe …]

For each recipe the network is trained as configured (a finished training is reused), and the compress stage builds the
candidates of `candidates.py`, or else those of the recipe. ONNX Runtime's functions with default settings, and the
other tools, quantize a float file as PyTorch's exporter writes it, with calibration rows of the training split. The
other tools run in processes of the peers' Python (`peer_quantizers.py`); a failure is a row of the table. All files
then run in turns in one process on one thread, and are evaluated on the official test split. Files with dynamic ranges
are evaluated row by row, as in an endpoint.

Ratios are to fp32. *Drop* is the paired drop of accuracy, or the rise of RMSE, with the upper end of its 95% interval.
The last column lists our files that beat a peer's: smaller, faster for one row and for 32, and not shown to be worse on
the same rows.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import torch
from candidates import CANDIDATES
from goals import format_row, train_network

from bloomery.data_contracts.records.records import Candidates, Interval, Latency
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.flows.stages import PLAIN_STAGES
from bloomery.models.compression.config import Compression
from bloomery.models.evaluation import metrics
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session
from bloomery.models.networks.blueprint import read_network
from bloomery.models.profiling import latency
from bloomery.models.training.data.batches import Examples, even_sample, read_examples
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings

HERE = Path(__file__).resolve()
DEFAULTS = ("dynamic", "static")
METHODS = (
    "olive-static",
    "olive-dynamic",
    "olive-optimize",
    "neural-compressor",
    "onnx-neural-compressor-static",
    "onnx-neural-compressor-dynamic",
)
BATCHES = (1, 32)
CALIBRATION_ROWS = 256
_TIMEOUT_S = 900
_DYNAMIC_RANGE_OPERATORS = {"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}


class Evaluation(NamedTuple):
    size: float  # relative to fp32
    latencies: tuple[Latency, ...]
    score: float
    drop: Interval
    outputs: np.ndarray  # (B, K)


def quantize_by_onnx_runtime(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Quantizes with default settings. Returns the files, and the errors of functions that fail."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(np.load(folder / "rows.npy"))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self._rows, None)
            return None if row is None else {"x": row[None]}

    files, errors = {}, {}
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(folder / "fp32.onnx"), str(prepared), skip_symbolic_shape=True)
    for mode in DEFAULTS:
        name, path = f"onnxruntime-{mode}", folder / f"onnxruntime-{mode}.onnx"
        try:
            if mode == "dynamic":
                quantize_dynamic(str(prepared), str(path))
            else:
                quantize_static(str(prepared), str(path), Rows())
            create_session(path)
            files[name] = path
        except Exception as error:  # the table lists failures too
            errors[name] = str(error).strip().splitlines()[0]
    return files, errors


def quantize_by_peers(python: Path, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Runs each other tool in an offline process. Returns the files, and the errors of tools that fail."""
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parents[2] / "src"),
        "OLIVE_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hugging-face"),
        "OMP_NUM_THREADS": "1",
    }
    files, errors = {}, {}
    for method in METHODS:
        command = [str(python), str(HERE.with_name("peer_quantizers.py")), method, str(folder)]
        try:
            completed = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
            if completed.returncode:
                errors[method] = _find_first_error(completed.stdout + completed.stderr)
                continue
            create_session(folder / f"{method}.onnx")
            files[method] = folder / f"{method}.onnx"
        except subprocess.TimeoutExpired:
            errors[method] = f"not done after {_TIMEOUT_S} s"
        except Exception as error:  # ONNX Runtime cannot load the file
            errors[method] = str(error).strip().splitlines()[0]
    return files, errors


def _find_first_error(output: str) -> str:
    """Returns the first error of a process, since later ones often only report a missing result."""
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Iteration)\b.*", output, re.MULTILINE)
    return str(errors[0] if errors else (output.strip().splitlines() or ["no output"])[-1])


def compare(candidates: Candidates, python: Path, rounds: int) -> list[str]:
    """Returns the rows of the table."""
    dataset = candidates.trained.dataset
    train, test = (
        read_examples(settings().path(part.uri), dataset.key, dataset.layout) for part in (dataset.train, dataset.test)
    )
    own_files = {candidate.name: settings().path(candidate.uri) for candidate in candidates.candidates}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "rows.npy", even_sample(train.x, CALIBRATION_ROWS)[:CALIBRATION_ROWS].numpy())
        trained = candidates.trained
        network, _ = read_network(settings().path(trained.uri), settings().path(trained.network_uri))
        torch.save(network.eval(), folder / "network.pt")
        # Exports without ONNX Runtime's attention operator, which our files have and none of the quantizers supports.
        with patch("torch.onnx.is_in_onnx_export", return_value=False):
            export_onnx(network, test.x, folder / "fp32.onnx")
        runtime_files, runtime_errors = quantize_by_onnx_runtime(folder)
        peer_files, peer_errors = quantize_by_peers(python, folder)
        other_files = {"plain": folder / "fp32.onnx"} | runtime_files | peer_files
        evaluations = evaluate_files(own_files | other_files, candidates, test, rounds)
    own_evaluations = {name: evaluations[name] for name in own_files}
    lines = []
    for name, evaluation in evaluations.items():
        winners = "" if name in own_files else find_winners(evaluation, own_evaluations, candidates, test)
        label = f"**{name}**" if name in own_files else name
        row = format_row(label, evaluation.size, _ratios(evaluation), evaluation.score, evaluation.drop)
        lines.append(f"{row} {winners} |")
    errors = runtime_errors | peer_errors
    lines += [f"| {name} | fails: {error[:110]} | | | | | |" for name, error in errors.items()]
    return lines


def evaluate_files(
    files: Mapping[str, Path], candidates: Candidates, test: Examples, rounds: int
) -> dict[str, Evaluation]:
    x = test.x.numpy()
    baseline = candidates.baseline
    batches = [x[:size] for size in BATCHES]
    latencies = latency.compare_latency(latency.ComparedFiles(files, baseline), batches, rounds=rounds)
    outputs = {
        name: compute_outputs(create_session(path), x, is_row_by_row=_is_row_by_row(path))
        for name, path in files.items()
    }
    baseline_size = files[baseline].stat().st_size
    return {
        name: Evaluation(
            path.stat().st_size / baseline_size,
            latencies[name],
            _score(candidates, outputs[name], test),
            _measure_drop(candidates, outputs[baseline], outputs[name], test),
            outputs[name],
        )
        for name, path in files.items()
    }


def _is_row_by_row(path: Path) -> bool:
    """Whether activation ranges are dynamic, so that the output for a row depends on its batch."""
    if path.suffix != ".onnx":
        return False  # compressed storage, which the peers do not have
    return any(node.op_type in _DYNAMIC_RANGE_OPERATORS for node in onnx.load(path).graph.node)


def _score(candidates: Candidates, outputs_BK: np.ndarray, test: Examples) -> float:
    y = test.y.numpy()
    if candidates.trained.dataset.task == "classification":
        return float((outputs_BK.argmax(1) == y).mean())
    return float(metrics.rmse(y, outputs_BK[:, 0]).value)  # in standard units


def _measure_drop(candidates: Candidates, before_BK: np.ndarray, after_BK: np.ndarray, test: Examples) -> Interval:
    y = test.y.numpy()
    if candidates.trained.dataset.task == "classification":
        return metrics.accuracy_drop(before_BK.argmax(1) == y, after_BK.argmax(1) == y)
    return metrics.rmse_rise(y, before_BK[:, 0], after_BK[:, 0])


def find_winners(
    peer: Evaluation, own_evaluations: Mapping[str, Evaluation], candidates: Candidates, test: Examples
) -> str:
    """Returns the names of our files that beat the peer's in size and latencies, and are not shown to be worse."""
    names = [
        name
        for name, evaluation in own_evaluations.items()
        if evaluation.size < peer.size
        and all(own < competing for own, competing in zip(_ratios(evaluation), _ratios(peer), strict=True))
        and _measure_drop(candidates, peer.outputs, evaluation.outputs, test).low <= 0
    ]
    return ", ".join(names) or "none"


def _ratios(evaluation: Evaluation) -> list[float]:
    return [latency.ratio.value for latency in evaluation.latencies]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the Python of an environment with the peers")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("recipes", nargs="*", default=["mnist", "fashion-mnist", "pendigits", "clinc150"])
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    print(f"onnxruntime {onnxruntime.__version__}, one thread")
    for name in options.recipes:
        recipe = read_recipe(name)
        compression = Compression.model_validate(CANDIDATES[name]) if name in CANDIDATES else recipe.compression
        candidates = PLAIN_STAGES.compress(train_network(recipe, options.seed), compression)
        lines = compare(candidates, options.peers.absolute(), options.rounds)
        print(f"\n### `{name}`, seed {options.seed}\n")
        print("| file (ours in bold) | size | latency, 1 row | 32 rows | score | drop | ours that beat it |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
