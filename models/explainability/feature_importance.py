"""Feature importance: the mean absolute attribution over many rows.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bloomery.models.explainability.feature_groups import FeatureGroups, sum_by_group


class TokenImportance(NamedTuple):
    """A token, its number of occurrences, and the mean of its absolute weights."""

    token: int
    num_occurrences: int
    importance: float


def group_importance(weights: np.ndarray, groups: FeatureGroups) -> np.ndarray:
    """The mean absolute weight of each group over rows, float64 of the groups' grid; `weights` are (B, ...)."""
    return np.abs(sum_by_group(weights, groups)).mean(axis=0)


def token_importance(tokens_BT: np.ndarray, weights_BT: np.ndarray, min_count: int = 1) -> list[TokenImportance]:
    """All tokens except padding that occur at least `min_count` times, the most important first."""
    is_token = tokens_BT != 0
    tokens, positions = np.unique(tokens_BT[is_token].astype(np.int64), return_inverse=True)
    counts = np.bincount(positions, minlength=len(tokens))
    means = np.bincount(positions, np.abs(weights_BT[is_token]), len(tokens)) / np.maximum(counts, 1)
    order = np.lexsort((tokens, -means))
    return [
        TokenImportance(int(tokens[position]), int(counts[position]), float(means[position]))
        for position in order
        if counts[position] >= min_count
    ]
