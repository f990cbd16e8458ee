"""Measures the joules of one batch in ONNX Runtime, several files side by side.

Shapes: R rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from bloomery.data_contracts.records.records import Energy
from bloomery.models.evaluation.block_bootstrap import block_length
from bloomery.models.inference.runtime import create_session
from bloomery.models.profiling.latency import (
    ComparedFiles,
    bootstrap_interval,
    measure_in_turns,
    median_ratio,
    run_batch,
)
from bloomery.models.profiling.rapl import stuck_counter_error

_TURN_S = 0.05  # fifty steps of a counter that is updated each millisecond
_ROUNDS = 100
_MAX_SECONDS = 60.0
_MIN_WARMUP_BATCHES = 10


def compare_energy(
    files: ComparedFiles,
    x: np.ndarray,
    read_joules: Callable[[], float],
    *,
    rounds: int = _ROUNDS,
    turn_s: float = _TURN_S,
    seed: int = 0,
) -> dict[str, Energy]:
    """Measure the energy of every file on the same batch, float32 (B, ...), in turns, so noise affects all equally.

    Args:
        read_joules: the processor's joules so far, with idle power and all processes, as `EnergyCounter.read`.
        turn_s: a turn has as many batches as take this time, since the counter advances in steps.

    Each round has a new random order. A ratio is the median over the rounds of the ratio within a round.

    Raises:
        EngineMissing: the counter did not advance.
    """
    sessions = {name: create_session(path) for name, path in files.paths.items()}
    repeats = {}
    for name, runtime in sessions.items():
        start, num_batches = time.perf_counter(), 0
        while num_batches < _MIN_WARMUP_BATCHES or time.perf_counter() - start < turn_s:
            run_batch(runtime, x, name in files.row_by_row)
            num_batches += 1
        repeats[name] = max(round(num_batches * turn_s / (time.perf_counter() - start)), 1)

    def turn(name: str) -> float:
        before = read_joules()
        for _ in range(repeats[name]):
            run_batch(sessions[name], x, name in files.row_by_row)
        return (read_joules() - before) / repeats[name]

    joules = measure_in_turns(list(files.paths), turn, rounds, seed=seed, max_seconds=_MAX_SECONDS)
    if min(float(joules_R.min()) for joules_R in joules.values()) <= 0:
        raise stuck_counter_error()
    return {name: _summarise(joules_R, joules[files.baseline], len(x), seed) for name, joules_R in joules.items()}


def _summarise(joules_R: np.ndarray, baseline_R: np.ndarray, batch_size: int, seed: int) -> Energy:
    length = block_length(np.log(joules_R / baseline_R))
    return Energy(
        batch_size=batch_size,
        num_rounds=len(joules_R),
        p50_j=float(np.median(joules_R)),
        ratio=bootstrap_interval(median_ratio, joules_R, baseline_R, length, seed),
    )
