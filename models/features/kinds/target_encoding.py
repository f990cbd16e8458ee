"""Target encoding: a category becomes a statistic of the label over the training rows of that category.

The statistic is the fraction of each class, or for a regression the mean standardised label. Training rows are encoded
out of fold, so that a row's own label does not leak into its input.

Source: Micci-Barreca 2001, "A preprocessing scheme for high-cardinality categorical attributes in classification and
prediction problems", equations 4 and 8 (shrinkage towards the prior for categories with few rows).

Shapes: S slots (categories), N folds, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import cached_property

import numpy as np

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.config import Classes
from bloomery.models.features.statistics.column_counts import CategoryKey
from bloomery.models.features.statistics.moments import UNIT_BITS, Moments

COUNT, TOTAL = 0, 1  # quantities per category and fold: rows, and the sum of labels in units of `Moments`


class TargetCounts(Document):
    """The training rows of each fold, category and class: `counts` (N, S, K)."""

    counts: tuple[tuple[tuple[int, ...], ...], ...]
    smoothing: float

    @property
    def num_folds(self) -> np.uint64:
        return np.uint64(len(self.counts))

    @cached_property
    def encoding(self) -> np.ndarray:
        """Of all classes but the first, from all training rows: float32 (S, K - 1)."""
        return _smoothed_shares(np.array(self.counts, np.int64).sum(axis=0), self.smoothing)

    @cached_property
    def out_of_fold_encoding(self) -> np.ndarray:
        """The same from all folds but the row's own: float32 (N, S, K - 1)."""
        counts_NSK = np.array(self.counts, np.int64)
        return _smoothed_shares(counts_NSK.sum(axis=0) - counts_NSK, self.smoothing)


def _smoothed_shares(counts: np.ndarray, smoothing: float) -> np.ndarray:
    """(n_k + smoothing * prior_k) / (n + smoothing) for counts (..., S, K); the prior is that of all categories."""
    per_class = counts.sum(axis=-2, keepdims=True)
    num_rows = per_class.sum(axis=-1, keepdims=True)
    prior = np.where(num_rows > 0, per_class / np.maximum(num_rows, 1), 1 / counts.shape[-1])
    smoothed = (counts + smoothing * prior) / (counts.sum(axis=-1, keepdims=True) + smoothing)
    return smoothed[..., 1:].astype(np.float32)


class TargetMeans(Document):
    """The mean standardised label, shrunk towards 0: `values` (S,) of all folds, `values_without` (N, S) out of fold.

    Out-of-fold values also use the out-of-fold mean and deviation of the label.
    """

    values: tuple[float, ...]
    values_without: tuple[tuple[float, ...], ...]

    @property
    def num_folds(self) -> np.uint64:
        return np.uint64(len(self.values_without))

    @cached_property
    def encoding(self) -> np.ndarray:
        """Float32 (S, 1)."""
        return np.array(self.values, np.float32)[:, None]

    @cached_property
    def out_of_fold_encoding(self) -> np.ndarray:
        """Float32 (N, S, 1)."""
        return np.array(self.values_without, np.float32)[..., None]


def exact_group_sums(groups: np.ndarray, values: np.ndarray) -> dict[int, int]:
    """Sums float64 `values` (B,) exactly by `groups` int64 (B,), in units of 2 ** -UNIT_BITS.

    Values are added per exponent, as integers in two halves, of which 2 ** 36 fit into 64 bits.
    """
    fraction, exponent = np.frexp(values)
    mantissa = (fraction * 2.0**53).astype(np.int64)
    same_exponent = groups * 4096 + (exponent + 2048)
    order = np.argsort(same_exponent, kind="stable")
    same_exponent, mantissa = same_exponent[order], mantissa[order]
    starts = np.flatnonzero(np.diff(same_exponent, prepend=-1))
    low, high = np.add.reduceat(mantissa & (2**27 - 1), starts), np.add.reduceat(mantissa >> 27, starts)
    totals: dict[int, int] = {}
    for group_key, low_sum, high_sum in zip(same_exponent[starts].tolist(), low.tolist(), high.tolist(), strict=True):
        group, shift = group_key // 4096, group_key % 4096 - 2048 - 53 + UNIT_BITS
        total = low_sum + (high_sum << 27)
        # The bits that a subnormal value loses here are zeros.
        totals[group] = totals.get(group, 0) + (total << shift if shift >= 0 else total >> -shift)
    return totals


def fit_target_means(
    counts_by_key: Mapping[CategoryKey, int], num_slots: int, folds: tuple[Moments, ...], smoothing: float
) -> TargetMeans:
    """Fits means from COUNT and TOTAL by slot and fold. `folds` are the moments of the label in each fold."""
    counts = np.zeros((len(folds), num_slots), dtype=object)
    totals = np.zeros((len(folds), num_slots), dtype=object)
    for (slot, quantity, fold), number in counts_by_key.items():
        (counts if quantity == COUNT else totals)[int(fold or 0), int(slot or 0)] += number
    all_moments, num_rows, total = sum(folds, Moments()), counts.sum(axis=0), totals.sum(axis=0)
    means_without = [
        _smoothed_means(num_rows - counts[fold], total - totals[fold], _moments_without(folds, fold), smoothing)
        for fold in range(len(folds))
    ]
    means = _smoothed_means(num_rows, total, all_moments, smoothing)
    return TargetMeans(values=means, values_without=tuple(means_without))


def _moments_without(folds: tuple[Moments, ...], fold: int) -> Moments:
    return sum((moments for number, moments in enumerate(folds) if number != fold), Moments())


def _smoothed_means(counts: np.ndarray, totals: np.ndarray, label: Moments, smoothing: float) -> tuple[float, ...]:
    """(sum of labels - count * mean) / deviation / (count + smoothing) for each slot, rounded to float32."""
    if label.count == 0:
        return (0.0,) * len(counts)
    mean, deviation = Fraction(label.total, label.count), Fraction(label.deviation()) * 2**UNIT_BITS
    weight = Fraction(smoothing)
    return tuple(
        float(np.float32(float((total - count * mean) / deviation / (count + weight))))
        for count, total in zip(counts.tolist(), totals.tolist(), strict=True)
    )


def fit_target_counts(
    counts_by_key: Mapping[CategoryKey, int],
    num_slots: int,
    num_folds: int,
    classes: Classes,
    smoothing: float,
) -> TargetCounts:
    """Fits counts from rows counted by slot, label and fold."""
    class_index = {label: position for position, label in enumerate(classes)}
    counts = np.zeros((num_folds, num_slots, len(classes)), np.int64)
    for (slot, label, fold), count in counts_by_key.items():
        counts[int(fold or 0), int(slot or 0), class_index[label]] += count  # type: ignore[index]
    return TargetCounts.model_validate({"counts": counts.tolist(), "smoothing": smoothing})
