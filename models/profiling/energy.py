"""How many joules the processor takes while ONNX Runtime answers one batch, side by side.

Shapes: R rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from bloomery.data_contracts.records.records import Energy
from bloomery.models.evaluation.block_bootstrap import block_length
from bloomery.models.inference.runtime import create_session
from bloomery.models.profiling.latency import bootstrap_interval, measure_in_turns, median_ratio, run_batch
from bloomery.models.profiling.rapl import stuck_counter_error

_TURN_S = 0.05  # fifty steps of a counter that is brought up to date each millisecond
_ROUNDS = 100
_MOST_SECONDS = 60.0


def compare_energy(
    files: Mapping[str, Path],
    x: np.ndarray,
    read: Callable[[], float],
    *,
    baseline: str,
    rounds: int = _ROUNDS,
    row_by_row: Collection[str] = (),
    turn_s: float = _TURN_S,
    seed: int = 0,
) -> dict[str, Energy]:
    """Count the energy of every file on the same batch, float32 (B, ...), in turns, so that noise falls on all alike.

    `read` gives the joules that the processor has taken so far, for whatever runs on it and at rest. A turn is as many
    batches as take `turn_s`, since the counter moves in steps; the order is drawn anew in each round, as for times. The
    ratio is the median over the rounds of that within a round.

    Raises:
        EngineMissing: the counter stood still.
    """
    sessions = {name: create_session(path) for name, path in files.items()}
    repeats = {}
    for name, runtime in sessions.items():
        begin, asked = time.perf_counter(), 0
        while asked < 10 or time.perf_counter() - begin < turn_s:
            run_batch(runtime, x, name in row_by_row)
            asked += 1
        repeats[name] = max(round(asked * turn_s / (time.perf_counter() - begin)), 1)

    def turn(name: str) -> float:
        before = read()
        for _ in range(repeats[name]):
            run_batch(sessions[name], x, name in row_by_row)
        return (read() - before) / repeats[name]

    joules = measure_in_turns(list(files), turn, rounds, seed=seed, most_seconds=_MOST_SECONDS)
    if min(float(taken.min()) for taken in joules.values()) <= 0:
        raise stuck_counter_error()
    return {name: _told(taken, joules[baseline], len(x), seed) for name, taken in joules.items()}


def _told(joules_R: np.ndarray, baseline_R: np.ndarray, batch_size: int, seed: int) -> Energy:
    length = block_length(np.log(joules_R / baseline_R))
    return Energy(
        batch_size=batch_size,
        num_rounds=len(joules_R),
        p50_j=float(np.median(joules_R)),
        ratio=bootstrap_interval(median_ratio, joules_R, baseline_R, length, seed),
    )
