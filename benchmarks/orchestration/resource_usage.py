"""Measures the wall-clock and processor seconds of a command and all processes that it starts, and formats tables.

It runs on Linux only: a process of this module adopts orphaned processes and waits for them, so that the kernel counts
their processor time.
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
_ORPHAN_TIMEOUT_S = 20
_ENGINE_PREFIXES = ("PREFECT_", "MLFLOW_", "BENTOML_", "BLOOMERY_", "KEDRO_", "METAFLOW_", "ZENML_")


class Usage(NamedTuple):
    wall_s: float  # of the command itself
    processor_s: float  # of the command and all its processes, on all cores
    output: str


class CommandFailed(Exception):
    """A command failed; the message has its exit code and last output."""


def environment(home: Path, **overrides: str) -> dict[str, str]:
    """Returns this process's environment without the variables of engines, with `home` as the state folder."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_ENGINE_PREFIXES) or name == "BLOOMERY_DATA"
    }
    return variables | {"BLOOMERY_HOME": str(home), "PYTHONPATH": str(ROOT / "src"), "DO_NOT_TRACK": "1"} | overrides


def run_command(
    command: Sequence[str], variables: Mapping[str, str], *, cwd: Path = ROOT, timeout_s: float = 900
) -> Usage:
    """Runs `command`, waits until it and every process that it started have ended, and returns its resource usage.

    Raises:
        CommandFailed: its exit code was not 0, or it ran longer than `timeout_s`.
    """
    with tempfile.NamedTemporaryFile("r", suffix=".json") as figures:
        wrapper = [sys.executable, str(Path(__file__).resolve()), figures.name, *command]
        process = subprocess.Popen(
            wrapper,
            cwd=cwd,
            env=dict(variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end_group(process.pid)
            raise CommandFailed(f"{shorten(command)} ran longer than {timeout_s:.0f} s") from None
        except BaseException:
            _end_group(process.pid)
            raise
        if process.returncode:
            raise CommandFailed(
                f"{shorten(command)} ended with exit code {process.returncode}\n{out[-2000:]}\n{err[-3000:]}"
            )
        wall_s, processor_s = json.load(figures)
    return Usage(wall_s, processor_s, out)


def shorten(command: Sequence[str]) -> str:
    return " ".join(command)[:120]


def _end_group(group: int) -> None:
    os.killpg(group, signal.SIGKILL)


def _wait_for_all(figures: str, command: Sequence[str]) -> int:
    """Runs `command`, waits for it and its orphans, and writes `[wall, processor seconds]`. Returns the exit code."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    start = time.perf_counter()
    process = subprocess.Popen(command)
    code = process.wait()
    wall_s = time.perf_counter() - start
    deadline = time.monotonic() + _ORPHAN_TIMEOUT_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            if time.monotonic() > deadline:
                print(
                    f"{shorten(command)} left processes that did not end within {_ORPHAN_TIMEOUT_S} s", file=sys.stderr
                )
                return code or 1
            time.sleep(0.05)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(figures).write_text(json.dumps([wall_s, usage.ru_utime + usage.ru_stime]), encoding="utf-8")
    return code


def describe_machine(num_rounds: int) -> str:
    import platform

    rounds = f"{num_rounds} round{'s' if num_rounds > 1 else ''}"
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} in turns"


def format_rounds(figures: Sequence[float], digits: int = 1) -> str:
    """Formats the figure of every round, since rounds differ: `48.5 / 52.2`."""
    return " / ".join(f"{figure:.{digits}f}" for figure in figures)


def median_ratio(figures: Sequence[float], baseline: Sequence[float]) -> float:
    """Returns the median over rounds of the ratio of two measurements."""
    return statistics.median(figure / base for figure, base in zip(figures, baseline, strict=True))


def format_table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a Markdown table with text in the first column and numbers in the others."""
    lines = [heads, ["---", *(["---:"] * (len(heads) - 1))], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(_wait_for_all(sys.argv[1], sys.argv[2:]))
