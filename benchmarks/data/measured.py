"""Run a command and measure the whole tree of its processes: seconds, processor seconds and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[2]


class Measured(NamedTuple):
    wall_s: float
    processor_s: float
    peak_bytes: int  # of proportional set size, so that shared pages count once
    printed: str


def measure(arguments: list[str], home: Path) -> Measured:
    """Run a Python script with `arguments` in the state folder `home`; ends the program if it fails."""
    foreign = ("PREFECT_", "MLFLOW_", "BENTOML_", "BLOOMERY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environment, "BLOOMERY_HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds: dict[int, float] = {}
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], _look(process.pid, seconds))
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}\n{out}\n{err[-5000:]}")
    return Measured(time.perf_counter() - start, sum(seconds.values()), peak[0], out)


def _look(pid: int, seconds: dict[int, float]) -> int:
    """Note the processor seconds of every process of the tree, and return the memory of all of them."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total


def table(rows: list[tuple[str, Measured]], base: str) -> str:
    """A Markdown table of all runs, with the ratio of each to the run named `base`."""
    against = next(measured for name, measured in rows if name == base)
    lines = ["| what | wall | processor | ratio | peak |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, one in rows:
        ratio = one.processor_s / against.processor_s
        lines.append(
            f"| {name} | {one.wall_s:.1f} s | {one.processor_s:.1f} s | {ratio:.2f}x | {one.peak_bytes / 1e9:.2f} GB |"
        )
    return "\n".join(lines)
