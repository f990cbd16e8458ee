"""Confidence intervals of every score, and of its paired degradation from one model to another.

Shapes: N rows, K classes, M kinds of rows, D draws.
"""

from __future__ import annotations

import numpy as np

from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.block_bootstrap import bootstrap_interval
from bloomery.models.evaluation.class_output_scores import label_degradation_interval, label_score_interval
from bloomery.models.evaluation.label_sets import are_sets_right, draw_set_scores
from bloomery.models.evaluation.ordinal_scores import draw_kappas
from bloomery.models.evaluation.output_scores import output_degradation_interval, output_score_interval
from bloomery.models.evaluation.retrieval import gain_drop, gain_interval
from bloomery.models.evaluation.scores import compute_score, rank_targets, row_losses
from bloomery.models.evaluation.tag_scores import tag_score_drop, tag_score_interval

_NUM_DRAWS = 1_000
_NUM_RANK_DRAWS, _DRAWS_AT_ONCE = 200, 50
_MAX_RANKED_ROWS, _MIN_RANKED_ROWS = 5_000, 50  # of all classes together, and of each class
_MAX_DRAWN_COUNTS = 4_000_000  # at once: 32 MB
_LEVELS = (0.025, 0.975)
_PSEUDO_ROWS = 0.5  # in each direction of a disagreement
_TINY = np.finfo(np.float64).tiny


def score_interval(score: Score, truth_N: np.ndarray, predictions: np.ndarray) -> Interval:
    """The score with its 95% interval. The arguments are those of `compute_score`.

    Rows of a regression must be ordered so that dependent rows are close to each other.

    Raises:
        UndefinedScore: the score does not exist for these labels.
    """
    if score.name == "accuracy":
        return metrics.accuracy(predictions.argmax(axis=1) == truth_N)
    if score.name == "rmse":
        return metrics.rmse(truth_N, predictions)
    if score.name == "subset_accuracy":
        return metrics.accuracy(are_sets_right(truth_N, decide_labels(predictions)))
    if score.facts.task == "embedding":
        return gain_interval(score.name, predictions)
    value = compute_score(score, truth_N, predictions)
    if score.facts.task == "multioutput":
        return output_score_interval(score.name, truth_N, predictions)
    if score.facts.task == "multitask":
        return label_score_interval(score.name, truth_N, predictions, score_interval)
    if score.facts.task == "tagging":
        return tag_score_interval(score.name, truth_N, predictions)
    losses_N = row_losses(score, truth_N, predictions)
    if losses_N is not None:
        low, high = bootstrap_interval(losses_N[:, None], lambda means: means[..., 0], losses_N)
    elif score.name == "r2":
        low, high = _explained_limits(truth_N, predictions, predictions, is_drop=False)
    elif score.name == "quadratic_kappa":
        classes_N = predictions.argmax(axis=1)
        low, high = _limits_of_draws(draw_kappas(truth_N, classes_N, classes_N)[0], value)
        return _around(value, max(low, -1.0), min(high, 1.0))
    elif score.facts.task == "multilabel":
        low, high = _limits_of_draws(draw_set_scores(score, truth_N, predictions)[0], value)
    elif score.name in ("balanced_accuracy", "macro_f1"):
        classes_N = predictions.argmax(axis=1)
        low, high = _limits_of_draws(_draw_class_scores(score, truth_N, classes_N, classes_N)[0], value)
    else:
        low, high = _limits_of_draws(_draw_rank_scores(score, truth_N, predictions, predictions)[0], value)
    if score.facts.task != "regression" and not score.is_error:
        low, high = max(low, 0.0), min(high, 1.0)
    return _around(value, low, high)


def degradation_interval(score: Score, truth_N: np.ndarray, before: np.ndarray, after: np.ndarray) -> Interval:
    """How much worse `after` is than `before` on the same rows, with a 95% interval; negative is better.

    The drop of a score, or the rise of an error as a share of the error of `before`. Few rows in which both agree are
    no proof of equality: half a row in each direction of a disagreement is added to each class.

    Raises:
        UndefinedScore: the score does not exist for these labels.

    Source: Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions".
    """
    if score.name == "accuracy":
        return metrics.accuracy_drop(*(values.argmax(axis=1) == truth_N for values in (before, after)))
    if score.name == "rmse":
        return metrics.rmse_rise(truth_N, before, after)
    if score.name == "subset_accuracy":
        return metrics.accuracy_drop(*(are_sets_right(truth_N, decide_labels(values)) for values in (before, after)))
    if score.facts.task == "embedding":
        return gain_drop(score.name, before, after)
    scores = [compute_score(score, truth_N, values) for values in (before, after)]
    if score.facts.task == "multioutput":
        return output_degradation_interval(score.name, truth_N, before, after)
    if score.facts.task == "multitask":
        return label_degradation_interval(score.name, truth_N, before, after, degradation_interval)
    if score.facts.task == "tagging":
        return tag_score_drop(score.name, truth_N, before, after)
    losses = [row_losses(score, truth_N, values) for values in (before, after)]
    if losses[0] is not None and losses[1] is not None:
        return metrics.loss_rise(losses[0], losses[1])
    value = scores[0] - scores[1]
    if score.name == "r2":
        return _around(value, *_explained_limits(truth_N, before, after, is_drop=True))
    if score.facts.task == "multilabel":
        draws = draw_set_scores(score, truth_N, before, after)
    elif score.name == "quadratic_kappa":
        draws = draw_kappas(truth_N, before.argmax(axis=1), after.argmax(axis=1))
    elif score.name in ("balanced_accuracy", "macro_f1"):
        draws = _draw_class_scores(score, truth_N, before.argmax(axis=1), after.argmax(axis=1))
    else:
        draws = _draw_rank_scores(score, truth_N, before, after)
    return _around(value, *_limits_of_draws(draws[0] - draws[1], value))


def _around(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=min(low, value), high=max(high, value))


def _limits_of_draws(draws: np.ndarray, value: float) -> tuple[float, float]:
    """The 95% limits of draws (D,), moved so that their mean is `value`."""
    low, high = np.quantile(draws, _LEVELS) + (value - draws.mean())
    return float(low), float(high)


def _explained_limits(
    truth_N: np.ndarray, before: np.ndarray, after: np.ndarray, *, is_drop: bool
) -> tuple[float, float]:
    """The 95% limits of R², or of its drop."""
    centred_N = truth_N - truth_N.mean()  # against cancellation
    squares = [(values - truth_N) ** 2 for values in (before, after)]
    variance = centred_N.var()

    def statistic(means: np.ndarray) -> np.ndarray:
        spread = np.maximum(means[..., 3] - means[..., 2] ** 2, _TINY)
        error = means[..., 1] - means[..., 0] if is_drop else means[..., 1]
        return np.asarray(error / spread if is_drop else 1 - error / spread)

    errors_N = squares[1] - squares[0] if is_drop else squares[1]
    influence_N = (errors_N - errors_N.mean() / variance * centred_N**2) * (1 if is_drop else -1)
    return bootstrap_interval(np.stack([*squares, centred_N, centred_N**2], axis=1), statistic, influence_N)


def _draw_class_scores(score: Score, truth_N: np.ndarray, before_N: np.ndarray, after_N: np.ndarray) -> np.ndarray:
    """Bootstrapped scores (2, D) of two predictions of classes: rows of one kind are exchangeable, so counts suffice.

    Averages are over the classes with rows.
    """
    classes = np.unique(truth_N)
    kinds_M3, counts_M = np.unique(np.stack([truth_N, before_N, after_N], axis=1), axis=0, return_counts=True)
    wrong = np.full(len(classes), -1)  # no class
    pseudo = [np.stack([classes, classes, wrong], axis=1), np.stack([classes, wrong, classes], axis=1)]
    kinds_M3 = np.concatenate([kinds_M3, *pseudo])
    weights_M = np.concatenate([counts_M, np.full(2 * len(classes), _PSEUDO_ROWS)])
    random = np.random.default_rng(0)
    draws_at_once = max(_MAX_DRAWN_COUNTS // len(weights_M), 1)
    parts = []
    for start in range(0, _NUM_DRAWS, draws_at_once):
        num_draws = min(draws_at_once, _NUM_DRAWS - start)
        draws_DM = random.multinomial(len(truth_N), weights_M / weights_M.sum(), num_draws).astype(np.float64)
        parts.append(_score_counts(score, classes, kinds_M3, draws_DM))
    return np.concatenate(parts, axis=1)


def _score_counts(score: Score, classes: np.ndarray, kinds_M3: np.ndarray, draws_DM: np.ndarray) -> np.ndarray:
    """The scores (2, D) of two predictions where each kind of rows was drawn so often."""
    scores = np.zeros((2, len(draws_DM)))
    num_drawn = np.zeros(len(draws_DM))
    for name in classes:
        is_true_M = kinds_M3[:, 0] == name
        true_D = draws_DM[:, is_true_M].sum(axis=1)
        num_drawn += true_D > 0
        for side in (0, 1):
            is_predicted_M = kinds_M3[:, side + 1] == name
            right_D = draws_DM[:, is_true_M & is_predicted_M].sum(axis=1)
            others_D = true_D
            if score.name == "macro_f1":
                others_D = (true_D + draws_DM[:, is_predicted_M].sum(axis=1)) / 2
            scores[side] += np.where(true_D > 0, right_D / np.maximum(others_D, 0.5), 0.0)
    return scores / np.maximum(num_drawn, 1)


def _draw_rank_scores(score: Score, truth_N: np.ndarray, before_NK: np.ndarray, after_NK: np.ndarray) -> np.ndarray:
    """Bootstrapped scores (2, D) of two rankings, each the mean over the targets of `rank_targets`.

    All targets share the rows of a draw: a row that is hard for one class is hard for others, so the errors of their
    scores add up. Of classes with many rows an even sample is drawn from, in which each row stands for several.
    """
    targets = rank_targets(truth_N, before_NK.shape[1])
    rows_N, scales_N = _sample_by_class(truth_N)
    truth_N, before_NK, after_NK = truth_N[rows_N], before_NK[rows_N], after_NK[rows_N]
    # For each target, a row of its class that only the first model ranks first, and one that only the second does.
    orders = [
        [
            _RankOrder(np.append(truth_N == target, [True, True]), np.append(values_NK[:, target], extremes))
            for values_NK, extremes in ((before_NK, [2.0, -1.0]), (after_NK, [-1.0, 2.0]))
        ]
        for target in targets
    ]
    scores = np.zeros((2, _NUM_RANK_DRAWS))
    random = np.random.default_rng(0)
    for start in range(0, _NUM_RANK_DRAWS, _DRAWS_AT_ONCE):
        # How often each of the rows that a row stands for is drawn adds up: a Poisson number, too, not a multiple.
        draws_DN = random.poisson(scales_N, (_DRAWS_AT_ONCE, len(scales_N)))
        for sides in orders:
            extremes_D2 = random.poisson(_PSEUDO_ROWS, (_DRAWS_AT_ONCE, 2))
            weights = np.concatenate([draws_DN, extremes_D2], axis=1)
            for side, order in enumerate(sides):
                scores[side, start : start + _DRAWS_AT_ONCE] += order.scores(score, weights)
    return scores / len(targets)


def _sample_by_class(truth_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of at most about `_MAX_RANKED_ROWS` rows, evenly among the classes, and how many each stands for."""
    classes = np.unique(truth_N)
    num_rows = max(_MAX_RANKED_ROWS // len(classes), _MIN_RANKED_ROWS)
    positions, scales = [], []
    for name in classes:
        rows = np.flatnonzero(truth_N == name)
        step = max(len(rows) // num_rows, 1)
        positions.append(rows[::step])
        scales.append(np.full(len(positions[-1]), len(rows) / len(positions[-1])))
    return np.concatenate(positions), np.concatenate(scales)


class _RankOrder:
    """Rows in the order of falling values. Rows with equal values form one group."""

    def __init__(self, is_positive_N: np.ndarray, values_N: np.ndarray) -> None:
        self._order = np.argsort(-values_N, kind="stable")
        self._is_positive_N = is_positive_N[self._order]
        ranked_N = values_N[self._order]
        self._ends = np.append(np.flatnonzero(np.diff(ranked_N)), len(ranked_N) - 1)

    def scores(self, score: Score, weights_DN: np.ndarray) -> np.ndarray:
        """The AUC or the average precision (D,) where rows have these weights."""
        weights_DN = weights_DN[:, self._order]
        hits, misses = (
            np.cumsum(weights_DN * is_counted_N, axis=1)[:, self._ends].astype(np.float64)
            for is_counted_N in (self._is_positive_N, ~self._is_positive_N)
        )
        num_hits = np.maximum(hits[:, -1:], 1)
        new_hits = np.diff(hits, axis=1, prepend=0)
        if score.name == "average_precision":
            return np.asarray((new_hits / num_hits * hits / np.maximum(hits + misses, 1)).sum(axis=1))
        new_misses = np.diff(misses, axis=1, prepend=0)
        num_misses = np.maximum(misses[:, -1:], 1)
        return np.asarray((new_misses * (hits - new_hits / 2) / num_hits / num_misses).sum(axis=1))
