"""Files for LiteRT, once TensorFlow Lite. Another Python converts them: what that needs clashes with Prefect."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bloomery.data_contracts.errors import EngineMissing, ParityBroken
from bloomery.models.export import litert_script
from bloomery.models.export.onnx_exporter import TOLERANCE, export_program

PYTHON_VARIABLE = (
    "BLOOMERY_LITERT_PYTHON"  # the variable that names an interpreter with `litert-torch` and `ai-edge-litert`
)
_PACKAGES = ("litert_torch", "ai_edge_litert")
_MOST_SECONDS = 1800


def require_litert(python: str | None) -> None:
    """Nothing is imported yet: the packages are looked for alone.

    Raises:
        EngineMissing: `python` is None, does not run, or lacks a package.
    """
    if python is None:
        raise _missing("no Python is named for it")
    look = f"import sys, importlib.util as found; sys.exit(not all(map(found.find_spec, {_PACKAGES})))"
    try:
        ended = subprocess.run([python, "-I", "-c", look], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise _missing(str(failure)) from failure
    if ended.returncode != 0:
        raise _missing(f"{python} lacks {' or '.join(_PACKAGES)}")


def export_litert(network: nn.Module, examples: torch.Tensor, path: Path, python: str | None) -> float:
    """Write `network` for LiteRT, which answers one row at a time, and compare its answers to `examples` (B, ...).

    `python` is an interpreter that has `litert-torch` and `ai-edge-litert`; it gets a program of torch.export.

    Returns:
        The largest absolute difference of a logit between LiteRT and PyTorch on `examples`.

    Raises:
        EngineMissing: `python` is None, or does not convert it.
        ParityBroken: that difference is above `TOLERANCE`, or PyTorch cannot write the network down.
    """
    if python is None:
        raise _missing("no Python is named for it")
    with tempfile.TemporaryDirectory() as folder:
        program, rows, answers = (Path(folder) / name for name in ("program.pt2", "rows.npy", "answers.npy"))
        export_program(network, examples, program)
        np.save(rows, examples.numpy())
        # Without a GPU and our own packages: the other Python has its own.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            ended = subprocess.run(
                [python, litert_script.__file__, program, rows, path, answers],
                env=environment | {"CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                text=True,
                timeout=_MOST_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as failure:
            raise _missing(str(failure)) from failure
        if ended.returncode != 0:
            raise _missing((ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode}"])[-1][:300])
        answered_BK = np.load(answers)
    with torch.no_grad():
        error = float(np.abs(network(examples).numpy() - answered_BK).max())
    if not error <= TOLERANCE:
        raise ParityBroken(
            f"LiteRT and PyTorch differ by up to {error:.2g} in a logit",
            required=f"at most {TOLERANCE:g} on {len(examples)} rows",
            where=str(path),
            remedy="report the network's config: an operator of it is converted wrongly",
        )
    return error


def _missing(found: str) -> EngineMissing:
    return EngineMissing(
        f"no file for LiteRT can be made: {found}",
        required="a Python that has `litert-torch` and `ai-edge-litert`",
        where=f"the environment variable {PYTHON_VARIABLE}",
        remedy=f"python3.11 -m venv litert && litert/bin/pip install litert-torch ai-edge-litert, then "
        f"{PYTHON_VARIABLE}=$PWD/litert/bin/python; or leave litert out of compression.also",
    )
