"""Measures wall and processor seconds of a command and all processes that it leaves behind, and formats tables.

Linux only: this module's process adopts orphans and waits for them, so that the system counts all of them.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
_GRACE_S = 20
_FOREIGN = ("PREFECT_", "MLFLOW_", "BENTOML_", "BLOOMERY_", "KEDRO_", "METAFLOW_", "ZENML_")


class Spent(NamedTuple):
    wall_s: float  # of the command itself
    processor_s: float  # of it and all its processes, on every core
    printed: str


class Failed(Exception):
    """A command failed; the message has its exit code and last output."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Returns this process's environment without variables that redirect an engine; the state folder is `home`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN) or name == "BLOOMERY_DATA"
    }
    return kept | {"BLOOMERY_HOME": str(home), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"} | more


def spend(command: Sequence[str], told: Mapping[str, str], *, cwd: Path = ROOT, timeout_s: float = 900) -> Spent:
    """Runs `command` until it and every process that it started have ended.

    Raises:
        Failed: it ended with anything but 0, or ran past `timeout_s`.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".json") as figures:
        waiting = [sys.executable, str(Path(__file__).resolve()), figures.name, *command]
        process = subprocess.Popen(
            waiting,
            cwd=cwd,
            env=dict(told),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end_group(process.pid)
            raise Failed(f"{shown(command)} ran past {timeout_s:.0f} s") from None
        except BaseException:
            _end_group(process.pid)
            raise
        if process.returncode:
            raise Failed(f"{shown(command)} ended with {process.returncode}\n{out[-2000:]}\n{err[-3000:]}")
        wall_s, processor_s = json.load(figures)
    return Spent(wall_s, processor_s, out)


def shown(command: Sequence[str]) -> str:
    return " ".join(command)[:120]


def _end_group(group: int) -> None:
    os.killpg(group, signal.SIGKILL)


def _wait_for_all(figures: str, command: Sequence[str]) -> int:
    """Runs `command`, waits for it and its orphans, and writes `[wall, processor seconds]`. Returns the exit code."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    start = time.perf_counter()
    first = subprocess.Popen(command)
    code = first.wait()
    wall_s = time.perf_counter() - start
    deadline = time.monotonic() + _GRACE_S
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if ended == 0:
            if time.monotonic() > deadline:
                print(f"{shown(command)} left processes that do not end", file=sys.stderr)
                return code or 1
            time.sleep(0.05)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(figures).write_text(json.dumps([wall_s, used.ru_utime + used.ru_stime]), encoding="utf-8")
    return code


def machine(num_rounds: int) -> str:
    import platform

    rounds = f"{num_rounds} round{'s' if num_rounds > 1 else ''}"
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} in turns"


def listed(figures: Sequence[float], digits: int = 1) -> str:
    """Formats every round, since rounds differ: `48.5 / 52.2`."""
    return " / ".join(f"{figure:.{digits}f}" for figure in figures)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median over rounds of the ratio of two measurements."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a Markdown table whose first column is text and whose others are numbers."""
    lines = [heads, ["---", *(["---:"] * (len(heads) - 1))], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(_wait_for_all(sys.argv[1], sys.argv[2:]))
