"""How long ONNX Runtime takes for one batch, side by side.

Shapes: R rounds, D draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from bloomery.data_contracts.records.records import Interval, Latency
from bloomery.models.evaluation.block_bootstrap import NUM_DRAWS, block_length
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session, run_session

TIMED_BATCH_SIZES = (1, 32)  # rows at a time, for every candidate
_MOST_SECONDS = 15.0
_FEWEST_ROUNDS = 20
_DRAWS_AT_ONCE = 200


def take_batch(x: np.ndarray, num_rows: int) -> np.ndarray:
    """Encoded rows float32 (`num_rows`, ...) of `x` for timing; rows repeat where `x` has too few."""
    return x[np.arange(num_rows) % len(x)]


def compare_latency(
    files: Mapping[str, Path],
    batches: Sequence[np.ndarray],
    *,
    baseline: str,
    rounds: int,
    row_by_row: Collection[str] = (),
    seed: int = 0,
) -> dict[str, tuple[Latency, ...]]:
    """Time every file on the same batches, each float32 (B, ...), in turns, so that noise falls on all alike.

    Each round asks all files, in an order drawn anew, twice, of which the second time counts: an endpoint has one file,
    and what another one left of the caches would be the company's doing. Files in `row_by_row` are asked the rows one
    after another, as the endpoint does it.

    Returns:
        For each name and batch percentiles in milliseconds over `rounds`, and two ratios to the baseline with their 95%
        limits: the median over the rounds of the ratio within a round, and the ratio of the 99th percentiles (below 1
        is faster). Large networks get fewer rounds: after `_MOST_SECONDS` those that are done count.
    """
    sessions = {name: create_session(path) for name, path in files.items()}
    timed = [_timed(sessions, x, rounds, row_by_row, seed) for x in batches]
    return {
        name: tuple(
            summarise(seconds[name], seconds[baseline], len(x), seed=seed)
            for x, seconds in zip(batches, timed, strict=True)
        )
        for name in files
    }


def _timed(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    x: np.ndarray,
    rounds: int,
    row_by_row: Collection[str],
    seed: int,
) -> dict[str, np.ndarray]:
    """The seconds that each session took for `x`, by round."""
    for name, runtime in sessions.items():
        for _ in range(10):
            run_batch(runtime, x, name in row_by_row)

    def turn(name: str) -> float:
        run_batch(sessions[name], x, name in row_by_row)
        start = time.perf_counter()
        run_batch(sessions[name], x, name in row_by_row)
        return time.perf_counter() - start

    return measure_in_turns(list(sessions), turn, rounds, seed=seed, most_seconds=_MOST_SECONDS)


def measure_in_turns(
    names: Sequence[str], turn: Callable[[str], float], rounds: int, *, seed: int, most_seconds: float
) -> dict[str, np.ndarray]:
    """What each turn came to, by name and round: all have one in each round, in an order that is drawn anew.

    After `most_seconds` the rounds that are done count, if they are `_FEWEST_ROUNDS` or all.
    """
    figures = {name: np.empty(rounds) for name in names}
    random = np.random.default_rng(seed)
    began, done = time.perf_counter(), 0
    while done < rounds and (done < _FEWEST_ROUNDS or time.perf_counter() - began < most_seconds):
        for place in random.permutation(len(names)):
            figures[names[place]][done] = turn(names[place])
        done += 1
    return {name: taken[:done] for name, taken in figures.items()}


def run_batch(runtime: onnxruntime.InferenceSession, x: np.ndarray, is_row_by_row: bool) -> None:
    if is_row_by_row:
        compute_outputs(runtime, x, is_row_by_row=True)
    else:
        run_session(runtime, x)


def summarise(seconds_R: np.ndarray, baseline_R: np.ndarray, batch_size: int, *, seed: int = 0) -> Latency:
    """What the times of one file come to, beside those of the baseline in the same rounds.

    The limits of the ratios are a bootstrap's over rounds: those of both files are drawn together, and neighbouring
    rounds too, since a disturbance of the machine lasts for many.

    Source: Künsch 1989, "The jackknife and the bootstrap for general stationary observations"; percentile limits of
    Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    p50_ms, p90_ms, p95_ms, p99_ms = (float(np.percentile(seconds_R, q) * 1e3) for q in (50, 90, 95, 99))
    length = block_length(np.log(seconds_R / baseline_R))

    def tail_ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.asarray(np.percentile(ours, 99, axis=-1) / np.percentile(theirs, 99, axis=-1))

    return Latency(
        batch_size=batch_size,
        num_rounds=len(seconds_R),
        p50_ms=p50_ms,
        p90_ms=p90_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        ratio=bootstrap_interval(median_ratio, seconds_R, baseline_R, length, seed),
        tail_ratio=bootstrap_interval(tail_ratio, seconds_R, baseline_R, length, seed),
    )


def median_ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The median over the rounds, which are the last axis."""
    return np.asarray(np.median(ours / theirs, axis=-1))


def bootstrap_interval(
    figure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ours_R: np.ndarray,
    theirs_R: np.ndarray,
    length: int,
    seed: int,
) -> Interval:
    """`figure` of the rounds, and its 95% limits over draws of blocks of `length` rounds, taken for a ring."""
    num_rounds = len(ours_R)
    num_blocks = -(-num_rounds // length)
    random = np.random.default_rng(seed)
    drawn_D = []
    for _ in range(0, NUM_DRAWS, _DRAWS_AT_ONCE):
        starts = random.integers(0, num_rounds, (_DRAWS_AT_ONCE, num_blocks, 1))
        places_DR = ((starts + np.arange(length)) % num_rounds).reshape(_DRAWS_AT_ONCE, -1)[:, :num_rounds]
        drawn_D.append(figure(ours_R[places_DR], theirs_R[places_DR]))
    low, high = np.quantile(np.concatenate(drawn_D), [0.025, 0.975])
    value = float(figure(ours_R, theirs_R))
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))
