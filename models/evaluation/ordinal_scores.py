"""Scores of classes that have an order, from the ranks of true and predicted classes.

Shapes: N rows, M kinds of rows, D draws.
"""

from __future__ import annotations

import numpy as np

_NUM_DRAWS, _DRAWS_AT_ONCE = 1_000, 100
_PSEUDO_ROWS = 0.5  # of each class, in each direction of a disagreement


def quadratic_kappa(truth_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Cohen's kappa of ranks, in which an error counts by the square of its distance: 1 is perfect, 0 is chance.

    Not a number if all true and predicted ranks are equal.

    Source: Cohen 1968, "Weighted kappa: Nominal scale agreement provision for scaled disagreement or partial credit".
    """
    return float(_kappas(truth_N, predicted_N, np.ones((1, len(truth_N))))[0])


def draw_kappas(truth_N: np.ndarray, before_N: np.ndarray, after_N: np.ndarray) -> np.ndarray:
    """Bootstrapped kappas (2, D) of two predictions: rows of one kind are exchangeable, so counts suffice.

    Few rows in which both agree are no proof of equality: for each class, half a row is added in each direction in
    which one of the predictions is wrong by one rank.
    """
    kinds_M3, counts_M = np.unique(np.stack([truth_N, before_N, after_N], axis=1), axis=0, return_counts=True)
    ranks = np.unique(truth_N)
    neighbours = np.where(ranks > 0, ranks - 1, 1)
    pseudo = [np.stack([ranks, ranks, neighbours], axis=1), np.stack([ranks, neighbours, ranks], axis=1)]
    kinds_M3 = np.concatenate([kinds_M3, *pseudo])
    weights_M = np.concatenate([counts_M, np.full(2 * len(ranks), _PSEUDO_ROWS)])
    random = np.random.default_rng(0)
    parts = []
    for _ in range(_NUM_DRAWS // _DRAWS_AT_ONCE):
        draws_DM = random.multinomial(len(truth_N), weights_M / weights_M.sum(), _DRAWS_AT_ONCE).astype(np.float64)
        parts.append(np.stack([_kappas(kinds_M3[:, 0], kinds_M3[:, side], draws_DM) for side in (1, 2)]))
    draws = np.concatenate(parts, axis=1)
    return draws[:, np.isfinite(draws).all(axis=0)]


def _kappas(truth_M: np.ndarray, predicted_M: np.ndarray, weights_DM: np.ndarray) -> np.ndarray:
    """The kappas (D,) of ranks that occur as often as each row of `weights_DM` says; nan where all are equal.

    The expected squared distance of independent ranks follows from their first two moments.
    """
    truth_M, predicted_M = truth_M.astype(np.float64), predicted_M.astype(np.float64)
    num_rows_D = weights_DM.sum(axis=1)
    columns = (truth_M, predicted_M, truth_M**2, predicted_M**2, (truth_M - predicted_M) ** 2)
    means = [weights_DM @ column / num_rows_D for column in columns]
    expected_D = means[2] + means[3] - 2 * means[0] * means[1]
    is_defined_D = expected_D > 1e-12
    return np.where(is_defined_D, 1 - means[4] / np.where(is_defined_D, expected_D, 1.0), np.nan)
