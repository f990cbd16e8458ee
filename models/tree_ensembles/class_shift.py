"""Shifts the logits of classes, so that the likeliest class is the decision that a score of decisions rewards.

A model that predicts probabilities well seldom gives a rare class the highest one. Subtracting a share of the logarithm
of each class's frequency prefers rare classes; with a share of 1, decisions are those for equally frequent classes.

Source: Menon et al. 2021, "Long-tail Learning via Logit Adjustment"; Breiman 1996, "Bagging Predictors" (the choice is
averaged over bootstrap samples).

Shapes: N rows, K classes, D draws.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

ShiftedScore = Literal["macro_f1", "balanced_accuracy"]
SHIFTED_SCORES: tuple[ShiftedScore, ...] = (
    "macro_f1",
    "balanced_accuracy",
)  # which depend on the decision for each row
_SHARES = np.linspace(0.0, 1.25, 26)
_NUM_DRAWS = 200


def choose_class_shift(outputs_NK: np.ndarray, y: np.ndarray, counts_K: np.ndarray, score: ShiftedScore) -> np.ndarray:
    """The numbers (K,) to add to logits, by the score of validation rows; their largest is 0.

    The best share is chosen on bootstrap samples of the rows and averaged, since few rows of a class decide by chance.

    Args:
        y: class indices int64 (N,).
        counts_K: the training rows of each class.
    """
    direction_K = _direction(counts_K)
    random = np.random.default_rng(0)
    draws_DN = np.stack([_draw(random, len(y)) for _ in range(_NUM_DRAWS)])
    scores = np.stack(
        [_scores((outputs_NK + share * direction_K).argmax(axis=1), y, draws_DN, score) for share in _SHARES]
    )
    is_best = scores >= scores.max(axis=0) - 1e-12
    best_D = _SHARES[is_best.argmax(axis=0)]  # of equally good shares, the smallest
    shift_K = best_D.mean() * direction_K
    return np.asarray(shift_K - shift_K.max())


def _direction(counts_K: np.ndarray) -> np.ndarray:
    """The negative logarithms of frequencies; a class without rows is left as unlikely as the model has it."""
    direction_K = -np.log(np.maximum(counts_K, 1) / max(counts_K.sum(), 1))
    return np.where(counts_K > 0, direction_K, direction_K[counts_K > 0].min())


def _draw(random: np.random.Generator, num_rows: int) -> np.ndarray:
    return np.bincount(random.integers(0, num_rows, num_rows), minlength=num_rows).astype(np.float32)


def _scores(decisions_N: np.ndarray, y: np.ndarray, draws_DN: np.ndarray, score: ShiftedScore) -> np.ndarray:
    """The score (D,) of decisions for each draw of the rows, over the classes that have rows or are decided for."""
    total_D, num_classes_D = np.zeros(len(draws_DN)), np.zeros(len(draws_DN))
    for name in np.union1d(y, decisions_N):
        is_true_N, is_decided_N = (values == name for values in (y, decisions_N))
        right_D, true_D, decided_D = (
            draws_DN @ mask_N.astype(np.float32) for mask_N in (is_true_N & is_decided_N, is_true_N, is_decided_N)
        )
        rows_D = true_D if score == "balanced_accuracy" else (true_D + decided_D) / 2
        total_D += np.where(rows_D > 0, right_D / np.maximum(rows_D, 0.5), 0.0)
        num_classes_D += rows_D > 0
    return total_D / np.maximum(num_classes_D, 1)
