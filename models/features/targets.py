"""Target encoding: a name becomes the share of each class among the training rows that have it.

A training row is given the shares that the other folds have, so that its own label never speaks through them.

Source: Micci-Barreca 2001, "A preprocessing scheme for high-cardinality categorical attributes in classification and
prediction problems", equation 8 (shares drawn towards the prior where a name has few rows).

Shapes: S slots (names), N folds, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from data_contracts.documents import Document
from models.config import Classes


class TargetFigures(Document):
    """How many training rows have each name and class, fold by fold: `counts` (N, S, K)."""

    counts: tuple[tuple[tuple[int, ...], ...], ...]
    smoothing: float

    @property
    def num_folds(self) -> np.uint64:
        return np.uint64(len(self.counts))

    @cached_property
    def shares(self) -> np.ndarray:
        """Of the classes but the first, from all training rows: float32 (S, K - 1)."""
        return _shares(np.array(self.counts, np.int64).sum(axis=0), self.smoothing)

    @cached_property
    def shares_without(self) -> np.ndarray:
        """The same from all folds but one: float32 (N, S, K - 1)."""
        counts_NSK = np.array(self.counts, np.int64)
        return _shares(counts_NSK.sum(axis=0) - counts_NSK, self.smoothing)


def _shares(counts: np.ndarray, smoothing: float) -> np.ndarray:
    """(n_k + smoothing * prior_k) / (n + smoothing) for counts (..., S, K); the prior is the share among all names."""
    per_class = counts.sum(axis=-2, keepdims=True)
    num_rows = per_class.sum(axis=-1, keepdims=True)
    prior = np.where(num_rows > 0, per_class / np.maximum(num_rows, 1), 1 / counts.shape[-1])
    smoothed = (counts + smoothing * prior) / (counts.sum(axis=-1, keepdims=True) + smoothing)
    return smoothed[..., 1:].astype(np.float32)


def target_figures(
    counted: Mapping[tuple[int, int | str | None, int | str | None], int],
    num_slots: int,
    num_folds: int,
    classes: Classes,
    smoothing: float,
) -> TargetFigures:
    """The figures of rows counted by slot, label and fold."""
    place = {label: position for position, label in enumerate(classes)}
    counts = np.zeros((num_folds, num_slots, len(classes)), np.int64)
    for (slot, label, fold), count in counted.items():
        counts[int(fold or 0), slot, place[label]] += count  # type: ignore[index]
    return TargetFigures.model_validate({"counts": counts.tolist(), "smoothing": smoothing})
