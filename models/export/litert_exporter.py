"""Exports to LiteRT (formerly TensorFlow Lite) in another Python, since the converter conflicts with Prefect."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bloomery.data_contracts.errors import EngineMissing
from bloomery.models.export import litert_script
from bloomery.models.export.onnx_exporter import TOLERANCE, export_program
from bloomery.models.inference.parity import require_parity

PYTHON_VARIABLE = "BLOOMERY_LITERT_PYTHON"  # names an interpreter with `litert-torch` and `ai-edge-litert`
_PACKAGES = ("litert_torch", "ai_edge_litert")
_TIMEOUT_S = 1800


def require_litert(python: str | None) -> None:
    """Check that `python` has the packages, without importing them.

    Raises:
        EngineMissing: `python` is None, does not run, or lacks a package.
    """
    if python is None:
        raise _missing("no Python is set for it")
    program = f"import sys, importlib.util as util; sys.exit(not all(map(util.find_spec, {_PACKAGES})))"
    try:
        process = subprocess.run([python, "-I", "-c", program], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise _missing(str(failure)) from failure
    if process.returncode != 0:
        raise _missing(f"{python} lacks {' or '.join(_PACKAGES)}")


def export_litert(network: nn.Module, examples: torch.Tensor, path: Path, python: str | None) -> float:
    """Export `network` to LiteRT, which runs one row at a time, and compare outputs on `examples` (B, ...).

    `python` is an interpreter with `litert-torch` and `ai-edge-litert`; it converts a torch.export program.

    Returns:
        The largest absolute difference of a logit between LiteRT and PyTorch on `examples`.

    Raises:
        EngineMissing: `python` is None, or the conversion fails.
        ParityBroken: that difference is above `TOLERANCE`, or PyTorch cannot export the network.
    """
    if python is None:
        raise _missing("no Python is set for it")
    with tempfile.TemporaryDirectory() as folder:
        program, rows, outputs = (Path(folder) / name for name in ("program.pt2", "rows.npy", "outputs.npy"))
        export_program(network, examples, program)
        np.save(rows, examples.numpy())
        # Without a GPU and our packages: the other Python has its own.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            process = subprocess.run(
                [python, litert_script.__file__, program, rows, path, outputs],
                env=environment | {"CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise _missing(str(failure)) from failure
        if process.returncode != 0:
            lines = process.stderr.strip().splitlines() or [f"the converter exits with {process.returncode}"]
            raise _missing(lines[-1][:300])
        outputs_BK = np.load(outputs)
    with torch.no_grad():
        error = float(np.abs(network(examples).numpy() - outputs_BK).max())
    require_parity(
        error,
        TOLERANCE,
        compared="LiteRT and PyTorch",
        rows=f"{len(examples)} rows",
        path=path,
        remedy="report the network's config: one of its operators is converted wrongly",
    )
    return error


def _missing(problem: str) -> EngineMissing:
    return EngineMissing(
        f"networks cannot be exported to LiteRT: {problem}",
        required="a Python with `litert-torch` and `ai-edge-litert`",
        where=f"the environment variable {PYTHON_VARIABLE}",
        remedy=f"python3.11 -m venv litert && litert/bin/pip install litert-torch ai-edge-litert, then "
        f"{PYTHON_VARIABLE}=$PWD/litert/bin/python; or leave litert out of compression.extra_formats",
    )
