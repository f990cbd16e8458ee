"""How long ONNX Runtime takes for one batch, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data_contracts.records import Latency
from models.runtime import answer, session

_MOST_SECONDS = 30.0
_FEWEST_ROUNDS = 20


def compare(files: Mapping[str, Path], x: np.ndarray, *, baseline: str, rounds: int) -> dict[str, Latency]:
    """Time every file on the same batch `x` float32 (B, ...), in turns, so that noise falls on all alike.

    Returns:
        For each name the 50th and 99th percentile in milliseconds over `rounds`, and the median over the rounds of
        its time as a ratio to the baseline's in the same round (below 1 is faster). Large networks get fewer rounds:
        after `_MOST_SECONDS` those that are done count.
    """
    sessions = {name: session(path) for name, path in files.items()}
    seconds = {name: np.empty(rounds) for name in files}
    for runtime in sessions.values():
        for _ in range(10):
            answer(runtime, x)
    began, done = time.perf_counter(), 0
    while done < rounds and (done < _FEWEST_ROUNDS or time.perf_counter() - began < _MOST_SECONDS):
        for name, runtime in sessions.items():
            start = time.perf_counter()
            answer(runtime, x)
            seconds[name][done] = time.perf_counter() - start
        done += 1
    seconds = {name: taken[:done] for name, taken in seconds.items()}
    return {
        name: Latency(
            batch_size=len(x),
            p50_ms=float(np.percentile(taken, 50) * 1e3),
            p99_ms=float(np.percentile(taken, 99) * 1e3),
            ratio=float(np.median(taken / seconds[baseline])),
        )
        for name, taken in seconds.items()
    }
