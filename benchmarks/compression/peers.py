"""Compares our candidates with ONNX Runtime's, Olive's and Neural Compressor's files of the same networks, in one run.

    python -m venv PEERS
    PEERS/bin/pip install torch==2.13.0 onnxruntime==1.31.1 olive-ai neural-compressor requests py-cpuinfo psutil \
        prettytable scipy tabulate datasets
    PEERS/bin/pip install --no-deps torchao onnx-neural-compressor
    BLOOMERY_DATA=… python benchmarks/compression/peers.py --peers PEERS/bin/python [--rounds 300] [recipe …]

For each recipe the network is trained as configured (a finished training is reused), and the compress stage builds the
candidates of `goals.py`, or else those of the recipe. From a float file as PyTorch's exporter writes it, and
calibration rows of the training split, come ONNX Runtime's defaults, and the others' files, each in a process of the
peers' Python (`by_peers.py`); a failure is a row of the table. All files then run in turns in one process on one
thread, on whole batches, and are evaluated on the official test split; dynamic ones run row by row, as in an endpoint.

Ratios are to fp32; *worse* is the paired drop of accuracy, or the rise of RMSE, with the upper end of its 95% interval.
The last column has our files that beat a peer's: smaller, faster for one row and for 32, and on the same rows not shown
to be worse.
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
from goals import CANDIDATES, row, trained_as

from bloomery.data_contracts.records.records import Candidates, Interval, Latency
from bloomery.flows.pipeline import PLAIN_STAGES
from bloomery.flows.recipe.recipe import read_recipe
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
WAYS = (
    "olive-static",
    "olive-dynamic",
    "olive-optimize",
    "neural-compressor",
    "onnx-neural-compressor-static",
    "onnx-neural-compressor-dynamic",
)
BATCHES = (1, 32)
CALIBRATION_ROWS = 256
_MOST_SECONDS = 900
_IN_RANGES_AS_THEY_COME = {"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}


class Judged(NamedTuple):
    size: float  # of fp32's
    times: tuple[Latency, ...]
    score: float
    worse: Interval
    outputs: np.ndarray  # (B, K)


def of_onnx_runtime(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of its two functions with default settings, and the errors of those that fail."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(np.load(folder / "rows.npy"))

        def get_next(self) -> dict[str, np.ndarray] | None:
            one = next(self._rows, None)
            return None if one is None else {"x": one[None]}

    files, failed = {}, {}
    ready = folder / "ready.onnx"
    quant_pre_process(str(folder / "fp32.onnx"), str(ready), skip_symbolic_shape=True)
    for how in DEFAULTS:
        name, path = f"onnxruntime-{how}", folder / f"onnxruntime-{how}.onnx"
        try:
            if how == "dynamic":
                quantize_dynamic(str(ready), str(path))
            else:
                quantize_static(str(ready), str(path), Rows())
            create_session(path)
            files[name] = path
        except Exception as failure:  # a failure of a peer is a result too
            failed[name] = str(failure).strip().splitlines()[0]
    return files, failed


def of_peers(python: Path, folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of the other tools, each made by a process without network access, and the errors."""
    surroundings = os.environ | {
        "PYTHONPATH": str(HERE.parents[2]),
        "OLIVE_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hugging-face"),
        "OMP_NUM_THREADS": "1",
    }
    files, failed = {}, {}
    for way in WAYS:
        command = [str(python), str(HERE.with_name("by_peers.py")), way, str(folder)]
        try:
            said = subprocess.run(
                command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=_MOST_SECONDS
            )
            if said.returncode:
                failed[way] = _why(said.stdout + said.stderr)
                continue
            create_session(folder / f"{way}.onnx")
            files[way] = folder / f"{way}.onnx"
        except subprocess.TimeoutExpired:
            failed[way] = f"not done after {_MOST_SECONDS} s"
        except Exception as failure:  # ONNX Runtime does not open the file
            failed[way] = str(failure).strip().splitlines()[0]
    return files, failed


def _why(said: str) -> str:
    """The first error of a process, since later ones often only report a missing result."""
    raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Iteration)\b.*", said, re.MULTILINE)
    return str(raised[0] if raised else (said.strip().splitlines() or ["no word"])[-1])


def compare(options: Candidates, python: Path, rounds: int) -> list[str]:
    """The rows of the table."""
    dataset = options.trained.dataset
    train, test = (
        read_examples(settings().path(part.uri), dataset.key, dataset.layout) for part in (dataset.train, dataset.test)
    )
    ours = {one.name: settings().path(one.uri) for one in options.candidates}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.save(folder / "rows.npy", even_sample(train.x, CALIBRATION_ROWS)[:CALIBRATION_ROWS].numpy())
        network, _ = read_network(settings().path(options.trained.uri), settings().path(options.trained.network_uri))
        torch.save(network.eval(), folder / "network.pt")
        # Our files have ONNX Runtime's attention operator, which none of the quantizers supports.
        with patch("torch.onnx.is_in_onnx_export", return_value=False):
            export_onnx(network, test.x, folder / "fp32.onnx")
        theirs, failed = of_onnx_runtime(folder)
        more, failed_too = of_peers(python, folder)
        theirs = {"plain": folder / "fp32.onnx"} | theirs | more
        judged = judge(ours | theirs, options, test, rounds)
    lines = []
    for name, one in judged.items():
        ahead = "" if name in ours else ahead_of(one, {mine: judged[mine] for mine in ours}, options, test)
        told = row(f"**{name}**" if name in ours else name, one.size, _ratios(one), one.score, one.worse)
        lines.append(f"{told} {ahead} |")
    lines += [f"| {name} | fails: {why[:110]} | | | | | |" for name, why in (failed | failed_too).items()]
    return lines


def judge(files: Mapping[str, Path], options: Candidates, test: Examples, rounds: int) -> dict[str, Judged]:
    x = test.x.numpy()
    baseline = options.baseline
    timed = latency.compare_latency(
        latency.ComparedFiles(files, baseline), [x[:size] for size in BATCHES], rounds=rounds
    )
    outputs = {
        name: compute_outputs(create_session(path), x, is_row_by_row=_is_row_by_row(path))
        for name, path in files.items()
    }
    whole = files[baseline].stat().st_size
    return {
        name: Judged(
            path.stat().st_size / whole,
            timed[name],
            _score(options, outputs[name], test),
            _worse(options, outputs[baseline], outputs[name], test),
            outputs[name],
        )
        for name, path in files.items()
    }


def _is_row_by_row(path: Path) -> bool:
    """Whether activation ranges are dynamic, so that the output for a row depends on its batch."""
    if path.suffix != ".onnx":
        return False  # compressed storage, which the peers do not have
    return any(node.op_type in _IN_RANGES_AS_THEY_COME for node in onnx.load(path).graph.node)


def _score(options: Candidates, outputs_BK: np.ndarray, test: Examples) -> float:
    y = test.y.numpy()
    if options.trained.dataset.task == "classification":
        return float((outputs_BK.argmax(1) == y).mean())
    return float(metrics.rmse(y, outputs_BK[:, 0]).value)  # in standard units


def _worse(options: Candidates, before_BK: np.ndarray, after_BK: np.ndarray, test: Examples) -> Interval:
    y = test.y.numpy()
    if options.trained.dataset.task == "classification":
        return metrics.accuracy_drop(before_BK.argmax(1) == y, after_BK.argmax(1) == y)
    return metrics.rmse_rise(y, before_BK[:, 0], after_BK[:, 0])


def ahead_of(peer: Judged, ours: Mapping[str, Judged], options: Candidates, test: Examples) -> str:
    """Names of our files that beat the peer's in size and both latencies, and are not shown to be worse."""
    names = [
        name
        for name, one in ours.items()
        if one.size < peer.size
        and all(mine < theirs for mine, theirs in zip(_ratios(one), _ratios(peer), strict=True))
        and _worse(options, peer.outputs, one.outputs, test).low <= 0
    ]
    return ", ".join(names) or "none"


def _ratios(one: Judged) -> list[float]:
    return [time.ratio.value for time in one.times]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--peers", type=Path, required=True, help="the Python of an environment with the peers")
    asked.add_argument("--rounds", type=int, default=300)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("recipes", nargs="*", default=["mnist", "fashion-mnist", "pendigits", "clinc150"])
    chosen = asked.parse_args()
    apply_engine_environment()
    require_state_folder()
    print(f"onnxruntime {onnxruntime.__version__}, one thread")
    for name in chosen.recipes:
        recipe = read_recipe(name)
        compression = Compression.model_validate(CANDIDATES[name]) if name in CANDIDATES else recipe.compression
        options = PLAIN_STAGES.compress(trained_as(recipe, chosen.seed), compression)
        lines = compare(options, chosen.peers.absolute(), chosen.rounds)
        print(f"\n### `{name}`, seed {chosen.seed}\n")
        print("| file (ours in bold) | size | time, 1 row | 32 rows | score | worse | ahead of it |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
