"""Computes the scores of predictions: one function for each name in `data_contracts/records/scores.py`.

Shapes: N rows, K classes or labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.scores import Score, ScoreName, scores_of
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.data_contracts.serving.entities import NO_TAG
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.evaluation.class_output_scores import score_labels
from bloomery.models.evaluation.label_sets import compute_set_score
from bloomery.models.evaluation.metrics import cross_entropies, log_loss, mean_absolute_error
from bloomery.models.evaluation.ordinal_scores import quadratic_kappa
from bloomery.models.evaluation.output_scores import has_labels, has_variance, mean_output_score
from bloomery.models.evaluation.retrieval import rank_gains
from bloomery.models.evaluation.tag_scores import compute_tag_score, has_entities

# Scores of the order of rows by their probability of a class.
RANKINGS = ("auc", "average_precision", "mean_average_precision")
_ZERO = 1e-6  # of the largest label
MAX_RANKED_CLASSES = 50  # of more, AUC and average precision are computed only where they are the score


_ALWAYS_DEFINED: dict[Task, str] = {
    "classification": "accuracy, macro_f1 or log_loss",
    "regression": "rmse or mae",
    "multilabel": "subset_accuracy or hamming_loss",
    "embedding": "ndcg_at_10",
    "ordinal": "rank_mae or accuracy",
    "multioutput": "mean_rmse or mean_mae",
    "multitask": "exact_match",
    "tagging": "tag_accuracy",
}


class UndefinedScore(ValueError):
    """The rows have too few classes, or labels for which the score does not exist. The message says why."""


def compute_score(score: Score, truth_N: np.ndarray, predictions: np.ndarray) -> float:
    """The score of `predictions`; not a number where a prediction is not finite.

    Args:
        truth_N: positions of classes int64, numbers float64, sets of labels as 0 and 1 (N, K), or several numbers
            (N, K) in standard units, nan where missing; of a tagging task, codes of tags int64 (N, T).
        predictions: probabilities float64 (N, K), or numbers float64 (N,) or (N, K); of an embedding the ranks of
            positives; of a tagging task, codes of tags int64 (N, T).

    Raises:
        UndefinedScore: the score does not exist for these labels.
    """
    if not len(truth_N):
        raise UndefinedScore("there are no rows")
    if not np.isfinite(predictions).all():
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes without rows, which the docstrings describe
        return float(_FUNCTIONS[score.name](score, truth_N, predictions))


def require_score(score: Score, truth_N: np.ndarray, predictions: np.ndarray, split: str) -> float:
    """`compute_score`, for people.

    Raises:
        DataUnfit: the score does not exist for the labels of `split`.
    """
    try:
        return compute_score(score, truth_N, predictions)
    except UndefinedScore as failure:
        raise _undefined_error(score, split, failure) from failure


def require_defined(score: Score, truth_N: np.ndarray, num_classes: int, split: str) -> None:
    """Requires that the score exists for these labels, before there are predictions.

    Args:
        num_classes: 0 of a regression.

    Raises:
        DataUnfit: it does not exist for the labels of `split`.
    """
    try:
        if not len(truth_N):
            raise UndefinedScore("there are no rows")
        if score.facts.task == "multilabel":
            _require_labels(score, truth_N)
        elif score.facts.task in ("multioutput", "multitask"):
            _require_outputs(score, truth_N)
        elif score.facts.task == "tagging":
            _require_entities(score, truth_N)
        elif score.name in RANKINGS:
            rank_targets(truth_N, num_classes)
        elif score.name == "quadratic_kappa":
            _require_two_classes(truth_N)
        elif score.name == "r2":
            _require_variance(truth_N)
        elif score.name == "mape":
            _require_no_zero(truth_N)
    except UndefinedScore as failure:
        raise _undefined_error(score, split, failure) from failure


def _undefined_error(score: Score, split: str, failure: UndefinedScore) -> DataUnfit:
    other = _ALWAYS_DEFINED[score.facts.task]
    return DataUnfit(
        f"{score.title} does not exist for the {split} split: {failure}",
        required="labels for which the recipe's score is defined",
        where=f"the {split} split and the recipe's `score`",
        remedy=f"set `score` to {other}, or change `features.split`",
    )


def compute_metrics(task: Task, truth_N: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """All scores of the task that are defined for these rows, by name; without the quantile loss."""
    num_classes = predictions.shape[1] if predictions.ndim == 2 and task != "tagging" else 0
    values: dict[str, float] = {}
    for name in scores_of(task):
        is_slow = name in RANKINGS and num_classes > MAX_RANKED_CLASSES
        if name == "quantile_loss" or is_slow:
            continue
        try:
            value = compute_score(Score(name=name), truth_N, predictions)
        except UndefinedScore:
            continue
        if np.isfinite(value):
            values[name] = value
    return values


def rank_targets(truth_N: np.ndarray, num_classes: int) -> list[int]:
    """The classes whose ranking AUC and average precision measure, each against all others.

    Of two classes the rarer one, or the second if both are equally frequent; of more, each class with rows.

    Raises:
        UndefinedScore: all rows are of one class.
    """
    counts_K = np.bincount(truth_N, minlength=num_classes)
    present = np.flatnonzero(counts_K)
    if len(present) < 2:
        raise UndefinedScore("all rows are of one class")
    if num_classes == 2:
        return [0] if counts_K[0] < counts_K[1] else [1]
    return [int(position) for position in present]


def row_losses(score: Score, truth_N: np.ndarray, predictions: np.ndarray) -> np.ndarray | None:
    """The losses float64 (N,) of rows whose mean is the score; None of a score that is not a mean.

    Raises:
        UndefinedScore: the score does not exist for these labels.
    """
    if score.name == "log_loss":
        return cross_entropies(truth_N, predictions)
    if score.name == "hamming_loss":
        return np.asarray((decide_labels(predictions) != truth_N).mean(axis=1))
    if score.name == "rank_mae":
        return np.abs(predictions.argmax(axis=1) - truth_N).astype(np.float64)
    if score.name == "mae":
        return np.asarray(np.abs(predictions - truth_N))
    if score.name == "mape":
        _require_no_zero(truth_N)
        return np.asarray(np.abs(predictions - truth_N) / np.abs(truth_N))
    if score.name == "quantile_loss":
        assert score.quantile is not None
        errors_N = truth_N - predictions
        return np.asarray(np.maximum(score.quantile * errors_N, (score.quantile - 1) * errors_N))
    return None


def _accuracy(score: Score, truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    return float((shares_NK.argmax(axis=1) == truth_N).mean())


def _balanced_accuracy(score: Score, truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    """The mean recall of the classes with rows."""
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(truth_N, shares_NK.argmax(axis=1)))


def _macro_f1(score: Score, truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    """The mean F1 of the classes that have rows or are predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth_N, shares_NK.argmax(axis=1), average="macro", zero_division=0))


def _auc(score: Score, truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    """The mean area under the ROC curve of the classes with rows, each against all others."""
    from sklearn.metrics import roc_auc_score

    return _mean_rank_score(roc_auc_score, truth_N, shares_NK)


def _average_precision(score: Score, truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    """The average precision of the rarer of two classes, or the mean over more."""
    from sklearn.metrics import average_precision_score

    return _mean_rank_score(average_precision_score, truth_N, shares_NK)


def _mean_rank_score(function: Callable[..., float], truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    targets = rank_targets(truth_N, shares_NK.shape[1])
    return float(np.mean([function(truth_N == target, shares_NK[:, target]) for target in targets]))


def _log_loss(score: Score, truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    return log_loss(truth_N, shares_NK)


def _rmse(score: Score, truth_N: np.ndarray, values_N: np.ndarray) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(truth_N, values_N))


def _mae(score: Score, truth_N: np.ndarray, values_N: np.ndarray) -> float:
    return mean_absolute_error(truth_N, values_N)


def _r2(score: Score, truth_N: np.ndarray, values_N: np.ndarray) -> float:
    from sklearn.metrics import r2_score

    _require_variance(truth_N)
    return float(r2_score(truth_N, values_N))


def _require_variance(truth_N: np.ndarray) -> None:
    if not np.var(truth_N) > 0:
        raise UndefinedScore("all labels are equal, so there is no variance to explain")


def _mape(score: Score, truth_N: np.ndarray, values_N: np.ndarray) -> float:
    from sklearn.metrics import mean_absolute_percentage_error

    _require_no_zero(truth_N)
    return float(mean_absolute_percentage_error(truth_N, values_N))


def _require_no_zero(truth_N: np.ndarray) -> None:
    # Encoded labels are float32, so a label of 0 comes back as a tiny number.
    num_zeros = int(np.count_nonzero(np.abs(truth_N) <= _ZERO * np.abs(truth_N).max(initial=0.0)))
    if num_zeros:
        raise UndefinedScore(f"{num_zeros} labels are 0, so that a percentage of them has no meaning")


def _quantile_loss(score: Score, truth_N: np.ndarray, values_N: np.ndarray) -> float:
    from sklearn.metrics import mean_pinball_loss

    return float(mean_pinball_loss(truth_N, values_N, alpha=score.quantile))


def _of_sets(score: Score, truth_NK: np.ndarray, shares_NK: np.ndarray) -> float:
    """A score of sets of labels."""
    _require_labels(score, truth_NK)
    return compute_set_score(score.name, truth_NK, shares_NK)


def _require_labels(score: Score, truth_NK: np.ndarray) -> None:
    if not truth_NK.any() and score.name not in ("subset_accuracy", "hamming_loss"):
        raise UndefinedScore("no row has a label")


def _of_ranks(score: Score, truth_N: np.ndarray, ranks_N: np.ndarray) -> float:
    """A score of the ranks of positives."""
    return float(rank_gains(score.name, ranks_N).mean())


def _of_tags(score: Score, truth_NT: np.ndarray, codes_NT: np.ndarray) -> float:
    """A score of tagged words."""
    _require_entities(score, truth_NT)
    return compute_tag_score(score.name, truth_NT, codes_NT)


def _require_entities(score: Score, truth_NT: np.ndarray) -> None:
    if not (truth_NT != NO_TAG).any():
        raise UndefinedScore("no row has a word")
    if score.name != "tag_accuracy" and not has_entities(truth_NT):
        raise UndefinedScore("no word is in an entity: their tags have a prefix, as B-PER and I-PER")


def _quadratic_kappa(score: Score, truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    _require_two_classes(truth_N)
    return quadratic_kappa(truth_N, shares_NK.argmax(axis=1))


def _require_two_classes(truth_N: np.ndarray) -> None:
    if not np.ptp(truth_N):
        raise UndefinedScore("all rows are of one class")


def _rank_mae(score: Score, truth_N: np.ndarray, shares_NK: np.ndarray) -> float:
    """The mean distance between the ranks of the true and the most probable class."""
    return float(np.abs(shares_NK.argmax(axis=1) - truth_N).mean())


def _of_outputs(score: Score, truth_NK: np.ndarray, values_NK: np.ndarray) -> float:
    """The mean of a score over the outputs."""
    _require_outputs(score, truth_NK)
    return mean_output_score(score.name, truth_NK, values_NK)


def _of_labels(score: Score, truth_NM: np.ndarray, shares_NMK: np.ndarray) -> float:
    """A score of several labels with classes."""
    _require_outputs(score, truth_NM)
    return score_labels(score.name, truth_NM, shares_NMK, compute_score)


def _require_outputs(score: Score, truth_NK: np.ndarray) -> None:
    if score.name != "exact_match" and not has_labels(truth_NK):
        raise UndefinedScore("an output has no label in any row")
    if score.name == "mean_r2" and not has_variance(truth_NK):
        raise UndefinedScore("all labels of an output are equal, so there is no variance to explain")


_FUNCTIONS: dict[ScoreName, Callable[[Score, np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "auc": _auc,
    "average_precision": _average_precision,
    "log_loss": _log_loss,
    "rmse": _rmse,
    "mae": _mae,
    "r2": _r2,
    "mape": _mape,
    "quantile_loss": _quantile_loss,
    "micro_f1": _of_sets,
    "label_macro_f1": _of_sets,
    "mean_average_precision": _of_sets,
    "subset_accuracy": _of_sets,
    "hamming_loss": _of_sets,
    "ndcg_at_10": _of_ranks,
    "recall_at_1": _of_ranks,
    "recall_at_5": _of_ranks,
    "recall_at_10": _of_ranks,
    "mean_reciprocal_rank": _of_ranks,
    "quadratic_kappa": _quadratic_kappa,
    "rank_mae": _rank_mae,
    "mean_rmse": _of_outputs,
    "mean_mae": _of_outputs,
    "mean_r2": _of_outputs,
    "mean_accuracy": _of_labels,
    "mean_balanced_accuracy": _of_labels,
    "exact_match": _of_labels,
    "mean_log_loss": _of_labels,
    "tag_accuracy": _of_tags,
    "entity_f1": _of_tags,
    "entity_precision": _of_tags,
    "entity_recall": _of_tags,
}
