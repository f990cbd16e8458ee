"""Drift of a distribution from a reference: the size of the difference, and its statistical significance.

Both are needed: in ten thousand rows every small difference is significant, and in fifty rows chance causes large ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from bloomery.data_contracts.odcs.distributions import Histogram, ReferenceColumn, psi
from bloomery.data_contracts.records.records import Interval
from bloomery.models.evaluation.metrics import Z_95

DriftTest = Literal["ks", "chi-square"]
_MIN_EXPECTED = 5.0  # minimum expected rows per cell for the chi-square approximation
_GROUP_FRACTION = 0.1  # fraction of the reference per group of adjacent numeric cells


class HypothesisTest(NamedTuple):
    """The statistic of a test, and its p-value under no drift."""

    statistic: float
    p_value: float


class Divergence(NamedTuple):
    """The divergence of observed rows from a reference.

    `noise_psi` is the expected PSI of so many rows without drift.
    """

    psi: float
    noise_psi: float
    test: DriftTest
    statistic: float
    p_value: float


def measure_divergence(reference: ReferenceColumn, num_reference_rows: int, observed: Histogram) -> Divergence:
    """Measures the divergence of `observed`, over the cells of `reference`, from a reference of `num_reference_rows`.

    Numbers are tested by Kolmogorov-Smirnov, and their missing and other values by chi-square; the p-value is twice the
    smaller one. Everything else is tested by chi-square. Both samples have at least one row.
    """
    before_C = np.asarray(reference.all_shares) * num_reference_rows
    after_C = np.array([*observed.counts, observed.num_other, observed.num_null], np.float64)
    if reference.edges is None:
        chi = chi_square(before_C, after_C)
        return Divergence(*_psi(before_C, after_C), "chi-square", chi.statistic, chi.p_value)
    order_test = kolmogorov_smirnov(before_C[:-2], after_C[:-2])
    p_value = order_test.p_value
    if before_C[-2:].any() or after_C[-2:].any():
        absent_test = chi_square(_sum_numbers(before_C), _sum_numbers(after_C))
        p_value = min(1.0, 2 * min(p_value, absent_test.p_value))
    groups = _groups(before_C[:-2])
    grouped = [np.concatenate([np.add.reduceat(counts[:-2], groups), counts[-2:]]) for counts in (before_C, after_C)]
    return Divergence(*_psi(*grouped), "ks", order_test.statistic, p_value)


def _sum_numbers(counts_C: np.ndarray) -> np.ndarray:
    """The counts of numbers, other values and nulls."""
    return np.array([counts_C[:-2].sum(), *counts_C[-2:]])


def _psi(before_C: np.ndarray, after_C: np.ndarray) -> tuple[float, float]:
    num_before, num_after = float(before_C.sum()), float(after_C.sum())
    num_cells = int(((before_C > 0) | (after_C > 0)).sum())
    observed = psi((before_C / num_before).tolist(), (after_C / num_after).tolist())
    return observed, psi_noise(num_cells, num_before, num_after)


def psi_noise(num_cells: int, num_before: float, num_after: float) -> float:
    """The expected PSI of two samples of the same distribution.

    For large samples, PSI is distributed as chi-square with C-1 degrees of freedom, times 1/N + 1/M.

    Source: Yurdakul and Naranjo 2020, "Statistical properties of the population stability index".
    """
    return max(num_cells - 1, 0) * (1 / num_before + 1 / num_after)


def _groups(before_C: np.ndarray) -> np.ndarray:
    """The first cells of groups of adjacent cells with about a tenth of the reference each."""
    group_size = _GROUP_FRACTION * float(before_C.sum()) * (1 - 1e-9)
    starts, group_count = [0], float(before_C[0])
    for cell, count in enumerate(before_C[1:].tolist(), start=1):
        if group_count >= group_size or count >= group_size:
            starts.append(cell)
            group_count = 0.0
        group_count += count
    return np.array(starts)


def chi_square(before_C: np.ndarray, after_C: np.ndarray) -> HypothesisTest:
    """Tests whether two samples, given as counts per cell, have the same distribution.

    Cells with fewer than five expected rows in one of the samples are merged.

    Source: Pearson 1911, "On the probability that two independent distributions of frequency are really samples from
    the same population"; Cochran 1954, "Some methods for strengthening the common chi-square tests", for small cells.
    """
    from scipy.stats import chi2

    num_before, num_after = float(before_C.sum()), float(after_C.sum())
    if not num_before or not num_after:
        return HypothesisTest(0.0, 1.0)
    smaller = min(num_before, num_after) / (num_before + num_after)
    total_C = before_C + after_C
    is_small_C = total_C * smaller < _MIN_EXPECTED
    cells = [(before, after) for before, after in zip(before_C[~is_small_C], after_C[~is_small_C], strict=True)]
    small_cells = (float(before_C[is_small_C].sum()), float(after_C[is_small_C].sum()))
    if (small_cells[0] + small_cells[1]) * smaller >= _MIN_EXPECTED or (
        not cells and (small_cells[0] + small_cells[1])
    ):
        cells.append(small_cells)
    elif small_cells[0] + small_cells[1]:  # still too few rows: merged into the smallest other cell
        smallest = min(range(len(cells)), key=lambda position: cells[position][0] + cells[position][1])
        cells[smallest] = (cells[smallest][0] + small_cells[0], cells[smallest][1] + small_cells[1])
    if len(cells) < 2:
        return HypothesisTest(0.0, 1.0)
    scale_before, scale_after = math.sqrt(num_after / num_before), math.sqrt(num_before / num_after)
    statistic = math.fsum(
        (before * scale_before - after * scale_after) ** 2 / (before + after) for before, after in cells
    )
    return HypothesisTest(statistic, float(chi2.sf(statistic, len(cells) - 1)))


def kolmogorov_smirnov(before_C: np.ndarray, after_C: np.ndarray) -> HypothesisTest:
    """Tests whether two samples of numbers, given as counts between ascending edges, have the same distribution.

    The statistic is the largest difference of the cumulative fractions at an edge. That of the values could only be
    larger, so the p-value is never too small.

    Source: Smirnov 1948, "Table for estimating the goodness of fit of empirical distributions"; Stephens 1970, "Use of
    the Kolmogorov-Smirnov, Cramér-von Mises and related statistics without extensive tables", for small samples.
    """
    from scipy.special import kolmogorov

    num_before, num_after = float(before_C.sum()), float(after_C.sum())
    if not num_before or not num_after:
        return HypothesisTest(0.0, 1.0)
    statistic = float(np.abs(np.cumsum(before_C) / num_before - np.cumsum(after_C) / num_after).max())
    root = math.sqrt(num_before * num_after / (num_before + num_after))
    return HypothesisTest(statistic, float(kolmogorov((root + 0.12 + 0.11 / root) * statistic)))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for multiple tests: without drift, one is below `a` with probability `a` at most.

    This holds for any dependence between the tests.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[position]))
        corrected[position] = highest
    return corrected


def poststratified_accuracy(
    predictions_N: np.ndarray, predictions_M: np.ndarray, is_right_M: np.ndarray
) -> tuple[Interval, float]:
    """The accuracy over N rows, of which M have a label, if some predictions get labels more often than others.

    The accuracy among the labelled rows of each predicted class is weighted by the frequency of that prediction
    (post-stratification), with a 95% interval by the normal approximation. There is at least one labelled row.

    Returns:
        The accuracy, and the fraction of rows that it covers: those with a predicted class that has labelled rows.

    Source: Holt and Smith 1979, "Post stratification".
    """
    predictions, counts = np.unique(predictions_N, return_counts=True)
    value = variance = covered = 0.0
    for prediction, count in zip(predictions, counts.tolist(), strict=True):
        is_right = is_right_M[predictions_M == prediction]
        if not len(is_right):
            continue
        share = float(is_right.mean())
        # One more correct and one more wrong row, so that few equal rows do not give a zero variance.
        guarded = (is_right.sum() + 1) / (len(is_right) + 2)
        covered += count
        value += count * share
        variance += count**2 * guarded * (1 - guarded) / len(is_right)
    half = Z_95 * math.sqrt(variance) / covered
    mean = value / covered
    return Interval(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half)), covered / len(predictions_N)
