"""Confidence intervals for statistics of rows that depend on neighbouring rows, as in forecasts.

Shapes: N rows, C columns, K blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

NUM_DRAWS = 2_000
_MAX_BLOCKS = 4_096  # per draw; with more rows, blocks are longer, which is faster
_NORMAL = NormalDist()


def bootstrap_interval(
    rows_NC: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    influence_N: np.ndarray,
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95% confidence limits of `statistic`, a function of column means (..., C) -> (...).

    Blocks of neighbouring rows are drawn together from a circular series, so that dependence widens the interval.
    Limits are corrected for bias and skewness (BCa). The result is deterministic.

    Args:
        rows_NC: float64, ordered so that dependent rows are close to each other.
        statistic: is vectorised over leading dimensions.
        influence_N: the influence of each row on the statistic, up to a factor.

    Source: Künsch 1989, "The jackknife and the bootstrap for general stationary observations"; Politis & Romano 1992,
    "A circular block-resampling procedure for stationary data"; Efron 1987, "Better bootstrap confidence intervals".
    """
    num_rows = len(rows_NC)
    length = max(block_length(influence_N), math.ceil(num_rows / _MAX_BLOCKS))
    # Complete blocks only: leaving out the remaining rows makes the limits slightly wider, never narrower.
    num_blocks = max(num_rows // length, 1)
    sums_NC = _block_sums(rows_NC, length)
    random = np.random.default_rng(seed)
    draws = np.empty(NUM_DRAWS)
    for start in range(0, NUM_DRAWS, 100):
        block_starts = random.integers(0, num_rows, (100, num_blocks), dtype=np.int32)
        means = np.stack([column[block_starts].sum(axis=1) for column in sums_NC.T], axis=1) / (num_blocks * length)
        draws[start : start + 100] = statistic(means)
    estimate = float(statistic(rows_NC.mean(axis=0)))
    low, high = np.quantile(draws, _levels(draws, estimate, _skewness(influence_N, length)))
    return min(float(low), estimate), max(float(high), estimate)


def _block_sums(rows_NC: np.ndarray, length: int) -> np.ndarray:
    """The sums of `length` rows starting at each row, circularly: (N, C)."""
    ring = np.concatenate([rows_NC, rows_NC[: length - 1]]) if length > 1 else rows_NC
    running = np.concatenate([np.zeros((1, rows_NC.shape[1])), np.cumsum(ring, axis=0)])
    return running[length:] - running[:-length]


def _skewness(influence_N: np.ndarray, length: int) -> float:
    """The acceleration: how the standard error changes with the statistic.

    Source: Efron 1987, section 6, with blocks in place of rows.
    """
    num_blocks = len(influence_N) // length
    if num_blocks < 2:
        return 0.0
    block_influence = (influence_N - influence_N.mean())[: num_blocks * length].reshape(num_blocks, length).sum(axis=1)
    block_influence = block_influence - block_influence.mean()
    spread = float(np.sum(block_influence**2))
    return float(np.sum(block_influence**3)) / (6 * spread**1.5) if spread > 0 else 0.0


def _levels(draws: np.ndarray, estimate: float, skewness: float) -> list[float]:
    """The quantile levels of the draws at the limits."""
    slack = 1e-9 * float(np.ptp(draws))  # with few rows, draws often equal the sample up to the order of the sum
    below = (np.mean(draws < estimate - slack) + np.mean(draws <= estimate + slack)) / 2
    bias = _NORMAL.inv_cdf(min(max(float(below), 1 / NUM_DRAWS), 1 - 1 / NUM_DRAWS))
    levels = []
    for level in (0.025, 0.975):
        point = bias + _NORMAL.inv_cdf(level)
        levels.append(_NORMAL.cdf(bias + point / max(1 - skewness * point, 0.1)))
    return levels


def block_length(series_N: np.ndarray) -> int:
    """The length of blocks to draw: 1 for independent rows, more the longer the dependence.

    Source: Politis & White 2004, "Automatic block-length selection for the dependent bootstrap", with the correction of
    Patton, Politis & White 2009.
    """
    num = len(series_N)
    centred = series_N - np.mean(series_N)
    if num < 10 or not np.any(centred):
        return 1
    num_quiet = max(5, math.ceil(math.sqrt(math.log10(num))))
    num_lags = min(math.ceil(math.sqrt(num)) + num_quiet, num - 1)
    covariances = _autocovariances(centred, num_lags)
    quiet = np.abs(covariances[1:] / covariances[0]) < 2 * math.sqrt(math.log10(num) / num)
    runs = np.lib.stride_tricks.sliding_window_view(quiet, min(num_quiet, len(quiet))).all(axis=1)
    last = int(np.argmax(runs)) if runs.any() else len(quiet)  # the last lag with a significant correlation
    if last == 0:
        return 1
    bandwidth = min(2 * last, num_lags)
    lags = np.arange(1, bandwidth + 1)
    window = np.clip(2 * (1 - lags / bandwidth), 0, 1)
    spectrum = covariances[0] + 2 * np.sum(window * covariances[lags])
    curvature = 2 * np.sum(window * lags * covariances[lags])
    longest = math.ceil(min(3 * math.sqrt(num), num / 3))
    if spectrum <= 0:
        return longest
    best = (1.5 * curvature**2 / spectrum**2 * num) ** (1 / 3)
    return int(min(max(math.ceil(best), 1), longest))


def _autocovariances(centred_N: np.ndarray, num_lags: int) -> np.ndarray:
    """The autocovariances at lags 0 to `num_lags`."""
    num = len(centred_N)
    size = 1 << (2 * num - 1).bit_length()
    spectrum = np.fft.rfft(centred_N, size)
    return np.fft.irfft(spectrum * np.conj(spectrum), size)[: num_lags + 1] / num
