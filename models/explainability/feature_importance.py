"""What matters over many rows.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bloomery.models.explainability.feature_groups import FeatureGroups, sum_by_group


class TokenImportance(NamedTuple):
    """A token, how often it stands in the rows, and the mean of its weights' sizes."""

    token: int
    times: int
    weight: float


def group_importance(weights: np.ndarray, units: FeatureGroups) -> np.ndarray:
    """The mean size of each unit's weight over rows, float64 of the units' grid; `weights` are (B, ...)."""
    return np.abs(sum_by_group(weights, units)).mean(axis=0)


def token_importance(tokens_BT: np.ndarray, weights_BT: np.ndarray, least_times: int = 1) -> list[TokenImportance]:
    """Every token but padding that stands in the rows at least `least_times` times, the weightiest first."""
    there = tokens_BT != 0
    tokens, places = np.unique(tokens_BT[there].astype(np.int64), return_inverse=True)
    counts = np.bincount(places, minlength=len(tokens))
    means = np.bincount(places, np.abs(weights_BT[there]), len(tokens)) / np.maximum(counts, 1)
    order = np.lexsort((tokens, -means))
    return [
        TokenImportance(int(tokens[place]), int(counts[place]), float(means[place]))
        for place in order
        if counts[place] >= least_times
    ]
