"""Scores of sets of labels, with draws for their intervals. A label is predicted if its probability is at least a half.

Shapes: N rows, K labels, D draws, S sides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.evaluation.metrics import ClassMetrics

_NUM_DRAWS, _NUM_RANK_DRAWS, _DRAWS_AT_ONCE = 1_000, 200, 50
# Rows that are drawn from; of more rows an even sample, in which each row stands for several.
_MAX_ROWS, _MIN_ROWS, _MAX_DECISIONS = 5_000, 500, 2_000_000  # a decision is one label of one row
_PSEUDO_ROWS = 0.5  # in each direction of a disagreement


def are_sets_right(truth_NK: np.ndarray, labels_NK: np.ndarray) -> np.ndarray:
    """Whether the labels of a row are exactly the true ones, bool (N,)."""
    return np.asarray((labels_NK == truth_NK).all(axis=1))


def label_metrics(truth_NK: np.ndarray, labels_NK: np.ndarray) -> list[ClassMetrics]:
    """The rows, recall and precision of each label."""
    hits_K = (truth_NK * labels_NK).sum(axis=0).tolist()
    counts = zip(hits_K, truth_NK.sum(axis=0).tolist(), labels_NK.sum(axis=0).tolist(), strict=True)
    return [
        ClassMetrics(
            int(num_rows),
            num_right / num_rows if num_rows else None,
            num_right / num_predicted if num_predicted else None,
        )
        for num_right, num_rows, num_predicted in counts
    ]


def find_counted_labels(truth_NK: np.ndarray) -> np.ndarray:
    """The positions of the labels that some row has; the others have neither recall nor average precision."""
    return np.flatnonzero(truth_NK.any(axis=0))


def compute_set_score(name: str, truth_NK: np.ndarray, probabilities_NK: np.ndarray) -> float:
    """The score of probabilities float64 (N, K) for the true labels (N, K), of which at least one is in some row.

    Macro F1 and mean average precision are means over the labels that some row has.
    """
    from sklearn.metrics import average_precision_score, f1_score, hamming_loss

    labels_NK = decide_labels(probabilities_NK)
    if name == "subset_accuracy":
        return float(are_sets_right(truth_NK, labels_NK).mean())
    if name == "hamming_loss":
        return float(hamming_loss(truth_NK, labels_NK))
    if name == "micro_f1":
        return float(f1_score(truth_NK.ravel(), labels_NK.ravel(), zero_division=0))
    counted = find_counted_labels(truth_NK)
    function: Callable[[np.ndarray, np.ndarray], float] = average_precision_score
    values_NK = probabilities_NK
    if name == "label_macro_f1":
        function, values_NK = _binary_f1, labels_NK
    return float(np.mean([function(truth_NK[:, label], values_NK[:, label]) for label in counted]))


def _binary_f1(truth_N: np.ndarray, labels_N: np.ndarray) -> float:
    num_hits = float((truth_N * labels_N).sum())
    return 2 * num_hits / max(float(truth_N.sum() + labels_N.sum()), 1.0)


def draw_set_scores(score: Score, truth_NK: np.ndarray, *sides: np.ndarray) -> np.ndarray:
    """Bootstrapped scores (S, D) of one or two predictions, probabilities (N, K), in the same draws of rows.

    Rows in which both agree are no proof of equality: each label gets half a row that only the first predicts rightly,
    and half a row that only the second does. They are drawn for each label alone, since labels differ in other rows.
    """
    max_rows = max(min(_MAX_ROWS, _MAX_DECISIONS // truth_NK.shape[1]), _MIN_ROWS)
    step = -(-len(truth_NK) // max_rows)
    sampled_NK = truth_NK[::step]
    rate = len(truth_NK) / len(sampled_NK)
    draw = _draw_rankings if score.name == "mean_average_precision" else _draw_f1
    return draw(score, sampled_NK, tuple(probabilities_NK[::step] for probabilities_NK in sides), rate)


def _draw_f1(score: Score, truth_NK: np.ndarray, sides: tuple[np.ndarray, ...], rate: float) -> np.ndarray:
    """The scores (S, D) where each row is drawn `rate` times on average."""
    labels = [decide_labels(probabilities_NK) for probabilities_NK in sides]
    if score.name == "label_macro_f1":
        counted = find_counted_labels(truth_NK)
        truth_NK, labels = truth_NK[:, counted], [labels_NK[:, counted] for labels_NK in labels]
    hits = [(truth_NK * labels_NK).astype(np.float64) for labels_NK in labels]
    sizes = [(truth_NK + labels_NK).astype(np.float64) for labels_NK in labels]
    random = np.random.default_rng(0)
    scores = np.zeros((len(sides), _NUM_DRAWS))
    for start in range(0, _NUM_DRAWS, _DRAWS_AT_ONCE):
        weights_DN = random.poisson(rate, (_DRAWS_AT_ONCE, len(truth_NK))).astype(np.float64)
        added = random.poisson(_PSEUDO_ROWS, (2, _DRAWS_AT_ONCE, truth_NK.shape[1]))
        for side in range(len(sides)):
            right_DK, wrong_DK = added[side], added[1 - side]
            hits_DK = weights_DN @ hits[side] + right_DK
            sizes_DK = weights_DN @ sizes[side] + 2 * right_DK + wrong_DK  # of the true labels, and of the predicted
            if score.name == "micro_f1":
                hits_DK, sizes_DK = hits_DK.sum(axis=1, keepdims=True), sizes_DK.sum(axis=1, keepdims=True)
            scores[side, start : start + _DRAWS_AT_ONCE] = (2 * hits_DK / np.maximum(sizes_DK, 1)).mean(axis=1)
    return scores


def _draw_rankings(score: Score, truth_NK: np.ndarray, sides: tuple[np.ndarray, ...], rate: float) -> np.ndarray:
    """The scores (S, D) where each row is drawn `rate` times on average."""
    counted = find_counted_labels(truth_NK)
    random = np.random.default_rng(0)
    weights_ND = random.poisson(rate, (len(truth_NK), _NUM_RANK_DRAWS)).astype(np.float32)
    scores = np.zeros((len(sides), _NUM_RANK_DRAWS))
    for label in counted:
        is_true_N = np.append(truth_NK[:, label] > 0, [True, True])
        added_2D = random.poisson(_PSEUDO_ROWS, (2, _NUM_RANK_DRAWS)).astype(np.float32)
        weights = np.concatenate([weights_ND, added_2D])
        for side, probabilities_NK in enumerate(sides):
            extremes = [2.0, -1.0] if side == 0 else [-1.0, 2.0]  # ranked first, and last
            values_N = np.append(probabilities_NK[:, label], extremes)
            scores[side] += _weighted_average_precision(is_true_N, values_N, weights)
    return scores / max(len(counted), 1)


def _weighted_average_precision(is_true_N: np.ndarray, values_N: np.ndarray, weights_ND: np.ndarray) -> np.ndarray:
    """The average precision (D,) where rows have these weights. Rows with equal values form one group."""
    order = np.argsort(-values_N, kind="stable")
    ranked_N, is_true_N, weights_ND = values_N[order], is_true_N[order], weights_ND[order]
    ends = np.append(np.flatnonzero(np.diff(ranked_N)), len(ranked_N) - 1)
    num_true = np.cumsum(is_true_N)[ends]
    has_true = np.diff(num_true, prepend=0) > 0  # only these groups add to the average precision
    hits = np.cumsum(weights_ND[is_true_N], axis=0)[num_true[has_true] - 1]
    drawn = np.cumsum(weights_ND, axis=0)[ends[has_true]]
    gains = np.diff(hits, axis=0, prepend=0)
    return np.asarray((gains * (hits / np.maximum(drawn, 1))).sum(axis=0) / np.maximum(hits[-1], 1))
