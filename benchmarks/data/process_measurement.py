"""Runs a Python script and measures its process tree: wall-clock seconds, processor seconds and peak memory."""

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


class Measurement(NamedTuple):
    wall_s: float
    processor_s: float
    peak_bytes: int  # proportional set size, in which a shared page counts once
    output: str


def measure_script(arguments: list[str], home: Path) -> Measurement:
    """Runs Python with `arguments`, with `home` as the state folder.

    Raises:
        SystemExit: the script failed. The message has its output.
    """
    engine_prefixes = ("PREFECT_", "MLFLOW_", "BENTOML_", "BLOOMERY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(engine_prefixes)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environment, "BLOOMERY_HOME": str(home), "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds: dict[int, float] = {}
    peak = [0]

    def sample_until_end() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], _sample_process_tree(process.pid, seconds))
            time.sleep(0.1)

    sampler = threading.Thread(target=sample_until_end)
    sampler.start()
    out, err = process.communicate()
    sampler.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with exit code {process.returncode}\n{out}\n{err[-5000:]}")
    return Measurement(time.perf_counter() - start, sum(seconds.values()), peak[0], out)


def _sample_process_tree(pid: int, seconds: dict[int, float]) -> int:
    """Stores the processor seconds of each process in `seconds`, and returns the memory of all of them in bytes."""
    memory_bytes = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            try:
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
                memory_bytes += process.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return memory_bytes


def format_table(runs: list[tuple[str, Measurement]], baseline: str) -> str:
    """Returns a Markdown table of all runs, with the processor time of each relative to that of the run `baseline`."""
    baseline_s = next(run.processor_s for name, run in runs if name == baseline)
    lines = ["| run | wall | processor | ratio | peak |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, run in runs:
        ratio = run.processor_s / baseline_s
        lines.append(
            f"| {name} | {run.wall_s:.1f} s | {run.processor_s:.1f} s | {ratio:.2f}x | {run.peak_bytes / 1e9:.2f} GB |"
        )
    return "\n".join(lines)
