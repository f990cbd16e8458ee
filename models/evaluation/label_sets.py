"""Scores of sets of labels, with draws for their intervals. A label is predicted if its probability is at least a half.

Shapes: N rows, K labels, D draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.evaluation.metrics import ClassMetrics

_NUM_DRAWS, _NUM_RANK_DRAWS, _DRAWS_AT_ONCE = 1_000, 200, 50
_MAX_ROWS = 5_000  # that are drawn from; of more rows an even sample, in which each row stands for several
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


def draw_set_scores(score: Score, truth_NK: np.ndarray, before_NK: np.ndarray, after_NK: np.ndarray) -> np.ndarray:
    """Bootstrapped scores (2, D) of two predictions, probabilities (N, K), in the same draws of rows.

    Rows in which both agree are no proof of equality: to each label half a row is added that only the first predicts
    rightly, and half a row that only the second does.
    """
    step = max(len(truth_NK) // _MAX_ROWS, 1)
    truth_NK, before_NK, after_NK = truth_NK[::step], before_NK[::step], after_NK[::step]
    is_ranking = score.name == "mean_average_precision"
    draw = _draw_rankings if is_ranking else _draw_f1
    num_draws = _NUM_RANK_DRAWS if is_ranking else _NUM_DRAWS
    weights = list(_draw_weights(len(truth_NK), step, num_draws))
    return draw(score, truth_NK, (before_NK, after_NK), weights)


def _draw_weights(num_rows: int, step: int, num_draws: int) -> Iterator[np.ndarray]:
    """Yields how often each row is drawn, float64 (D, N + 2); the last two are the added rows."""
    random = np.random.default_rng(0)
    rates = np.append(np.full(num_rows, float(step)), [_PSEUDO_ROWS, _PSEUDO_ROWS])
    for _ in range(0, num_draws, _DRAWS_AT_ONCE):
        yield random.poisson(rates, (_DRAWS_AT_ONCE, num_rows + 2)).astype(np.float64)


def _draw_f1(
    score: Score, truth_NK: np.ndarray, sides: tuple[np.ndarray, np.ndarray], weights: list[np.ndarray]
) -> np.ndarray:
    counted = find_counted_labels(truth_NK)
    truth_NK = truth_NK[:, counted] if score.name == "label_macro_f1" else truth_NK
    ones, zeros = np.ones((1, truth_NK.shape[1])), np.zeros((1, truth_NK.shape[1]))
    scores = []
    for side, probabilities_NK in enumerate(sides):
        labels_NK = decide_labels(probabilities_NK)
        labels_NK = labels_NK[:, counted] if score.name == "label_macro_f1" else labels_NK
        added = [ones, zeros] if side == 0 else [zeros, ones]
        truth, labels = np.concatenate([truth_NK, ones, ones]), np.concatenate([labels_NK, *added])
        hits_NK, sizes_NK = (truth * labels).astype(np.float64), (truth + labels).astype(np.float64)
        if score.name == "micro_f1":
            hits_NK, sizes_NK = hits_NK.sum(axis=1, keepdims=True), sizes_NK.sum(axis=1, keepdims=True)
        ratios = [2 * (drawn @ hits_NK) / np.maximum(drawn @ sizes_NK, 1) for drawn in weights]
        scores.append(np.concatenate(ratios).mean(axis=1))
    return np.stack(scores)


def _draw_rankings(
    score: Score, truth_NK: np.ndarray, sides: tuple[np.ndarray, np.ndarray], weights: list[np.ndarray]
) -> np.ndarray:
    counted = find_counted_labels(truth_NK)
    scores = np.zeros((2, sum(len(drawn) for drawn in weights)))
    for label in counted:
        is_true_N = np.append(truth_NK[:, label] > 0, [True, True])
        for side, probabilities_NK in enumerate(sides):
            added = [2.0, -1.0] if side == 0 else [-1.0, 2.0]  # ranked first, and last
            values_N = np.append(probabilities_NK[:, label], added)
            draws = [_weighted_average_precision(is_true_N, values_N, drawn) for drawn in weights]
            scores[side] += np.concatenate(draws)
    return scores / max(len(counted), 1)


def _weighted_average_precision(is_true_N: np.ndarray, values_N: np.ndarray, weights_DN: np.ndarray) -> np.ndarray:
    """The average precision (D,) where rows have these weights. Rows with equal values form one group."""
    order = np.argsort(-values_N, kind="stable")
    ranked_N, is_true_N, weights_DN = values_N[order], is_true_N[order], weights_DN[:, order]
    ends = np.append(np.flatnonzero(np.diff(ranked_N)), len(ranked_N) - 1)
    hits = np.cumsum(weights_DN * is_true_N, axis=1)[:, ends]
    drawn = np.cumsum(weights_DN, axis=1)[:, ends]
    new_hits = np.diff(hits, axis=1, prepend=0)
    return np.asarray((new_hits / np.maximum(hits[:, -1:], 1) * hits / np.maximum(drawn, 1)).sum(axis=1))
