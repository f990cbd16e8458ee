"""Measures the time of one batch in ONNX Runtime, several files side by side.

Shapes: R rounds, D draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.records.records import Interval, Latency
from bloomery.data_contracts.records.serving_device import GpuDevice
from bloomery.models.evaluation.block_bootstrap import NUM_DRAWS, block_length
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session, run_session

if TYPE_CHECKING:
    import onnxruntime

TIMED_BATCH_SIZES = (1, 32)
_MAX_SECONDS = 15.0
_MIN_ROUNDS = 20
_DRAWS_AT_ONCE = 200
_NUM_WARMUP_BATCHES = 10


def take_batch(x: np.ndarray, num_rows: int) -> np.ndarray:
    """The first `num_rows` rows of `x` (N, ...), repeated where there are too few."""
    return x[np.arange(num_rows) % len(x)]


@dataclass(frozen=True)
class ComparedFiles:
    """ONNX files to measure side by side.

    Attributes:
        paths: the files by name.
        baseline: the name of the file that the others are compared with.
        row_by_row: the names of the files that get the rows one by one, as the endpoint serves them.
        device: that computes; None is the processor. Times on a GPU include the copies to it and back.
    """

    paths: Mapping[str, Path]
    baseline: str
    row_by_row: Collection[str] = ()
    device: GpuDevice | None = None


def compare_latency(
    files: ComparedFiles, batches: Sequence[np.ndarray], *, rounds: int, seed: int = 0
) -> dict[str, tuple[Latency, ...]]:
    """Time every file on the same batches, each float32 (B, ...), in turns, so noise affects all equally.

    Each round runs all files twice, in a new random order, and only the second run counts: an endpoint has one file, so
    no other one evicts its caches.

    Returns:
        For each name and batch, percentiles in milliseconds over `rounds`, and two ratios to the baseline with 95%
        intervals (below 1 is faster): the median over the rounds of the ratio within a round, and the ratio of the 99th
        percentiles. Large networks get fewer rounds, those within `_MAX_SECONDS`.
    """
    sessions = {name: create_session(path, device=files.device) for name, path in files.paths.items()}
    seconds_of_batches = [_time_batch(sessions, x, rounds, files.row_by_row, seed) for x in batches]
    return {
        name: tuple(
            summarise(seconds[name], seconds[files.baseline], len(x), seed=seed, device=files.device)
            for x, seconds in zip(batches, seconds_of_batches, strict=True)
        )
        for name in files.paths
    }


def _time_batch(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    x: np.ndarray,
    rounds: int,
    row_by_row: Collection[str],
    seed: int,
) -> dict[str, np.ndarray]:
    """The seconds of each session for `x`, by round."""
    for name, runtime in sessions.items():
        for _ in range(_NUM_WARMUP_BATCHES):
            run_batch(runtime, x, name in row_by_row)

    def turn(name: str) -> float:
        run_batch(sessions[name], x, name in row_by_row)
        start = time.perf_counter()
        run_batch(sessions[name], x, name in row_by_row)
        return time.perf_counter() - start

    return measure_in_turns(list(sessions), turn, rounds, seed=seed, max_seconds=_MAX_SECONDS)


def measure_in_turns(
    names: Sequence[str], turn: Callable[[str], float], rounds: int, *, seed: int, max_seconds: float
) -> dict[str, np.ndarray]:
    """The measurement of each turn, by name and round. Each round has a turn for every name, in a new random order.

    After `max_seconds` it stops with the rounds so far, but not before `_MIN_ROUNDS`.
    """
    measurements = {name: np.empty(rounds) for name in names}
    random = np.random.default_rng(seed)
    start, num_done = time.perf_counter(), 0
    while num_done < rounds and (num_done < _MIN_ROUNDS or time.perf_counter() - start < max_seconds):
        for position in random.permutation(len(names)):
            measurements[names[position]][num_done] = turn(names[position])
        num_done += 1
    return {name: values[:num_done] for name, values in measurements.items()}


def run_batch(runtime: onnxruntime.InferenceSession, x: np.ndarray, is_row_by_row: bool) -> None:
    if is_row_by_row:
        compute_outputs(runtime, x, is_row_by_row=True)
    else:
        run_session(runtime, x)


def summarise(
    seconds_R: np.ndarray, baseline_R: np.ndarray, batch_size: int, *, seed: int = 0, device: GpuDevice | None = None
) -> Latency:
    """The latency record of one file's times, compared with the baseline's times in the same rounds.

    The intervals of the ratios come from a block bootstrap over rounds: both files' times are drawn together, with
    neighbouring rounds, since a disturbance of the machine affects several.

    Source: Künsch 1989, "The jackknife and the bootstrap for general stationary observations"; percentile limits of
    Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    p50_ms, p90_ms, p95_ms, p99_ms = (float(np.percentile(seconds_R, q) * 1e3) for q in (50, 90, 95, 99))
    length = block_length(np.log(seconds_R / baseline_R))
    return Latency(
        batch_size=batch_size,
        num_rounds=len(seconds_R),
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        ratio=bootstrap_interval(median_ratio, seconds_R, baseline_R, length, seed),
        tail_ratio=bootstrap_interval(tail_ratio, seconds_R, baseline_R, length, seed),
        device=device,
    )


def median_ratio(values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """The median of the ratios over the rounds, which are the last axis."""
    return np.asarray(np.median(values / baseline, axis=-1))


def tail_ratio(values: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """The ratio of the 99th percentiles over the rounds, which are the last axis."""
    return np.asarray(np.percentile(values, 99, axis=-1) / np.percentile(baseline, 99, axis=-1))


def bootstrap_interval(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    values_R: np.ndarray,
    baseline_R: np.ndarray,
    length: int,
    seed: int,
) -> Interval:
    """`statistic` of the rounds with its 95% interval over draws of circular blocks of `length` rounds."""
    num_rounds = len(values_R)
    num_blocks = -(-num_rounds // length)
    random = np.random.default_rng(seed)
    drawn_D = []
    for _ in range(0, NUM_DRAWS, _DRAWS_AT_ONCE):
        starts = random.integers(0, num_rounds, (_DRAWS_AT_ONCE, num_blocks, 1))
        rounds_DR = ((starts + np.arange(length)) % num_rounds).reshape(_DRAWS_AT_ONCE, -1)[:, :num_rounds]
        drawn_D.append(statistic(values_R[rounds_DR], baseline_R[rounds_DR]))
    low, high = np.quantile(np.concatenate(drawn_D), [0.025, 0.975])
    value = float(statistic(values_R, baseline_R))
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
