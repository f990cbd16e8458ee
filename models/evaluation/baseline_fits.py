"""Fits the baselines of a task: those of one label, for several labels one of each, or those of pairs of texts.

Shapes: N rows, M labels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from bloomery.models.evaluation.baselines import (
    MAJORITY_CLASSES,
    MAX_LINEAR_CLASSES,
    MAX_ROWS,
    MAX_TREE_CLASSES,
    MIN_ROWS,
    MIN_ROWS_OF_LABEL,
    MOST_FREQUENT_LABELS,
    MOST_FREQUENT_TAG,
    OUTPUT_MEANS,
    BaselineRows,
    BaselineTask,
    Features,
    FittedBaseline,
    fit_constant,
    fit_linear,
    fit_naive,
    fit_trees,
)
from bloomery.models.evaluation.lexical_baselines import fit_lexical


def fit_baselines(task: BaselineTask) -> Iterator[FittedBaseline]:
    """Yields each baseline with its predictions for the test rows, the simplest first. Equal arguments, equal results.

    Where there are many rows or features, an even sample of the rows is fitted, so that each takes seconds at most.
    """
    if task.class_counts:
        yield from _fit_to_class_outputs(task)
        return
    if task.train.y.dtype == np.int16:
        yield from _fit_to_tags(task)
        return
    if task.test_y is not None:
        yield from fit_lexical(task)
        return
    if task.train.y.dtype == np.float64 and task.train.y.ndim == 2:
        yield from _fit_to_outputs(task)
        return
    if task.train.y.ndim == 2:
        yield from _fit_to_sets(task)
        return
    yield fit_constant(task)
    if task.windows is not None:
        yield from fit_naive(task.train.y, task.windows)
    features = Features(task.layout)
    yield fit_linear(task, features)
    yield fit_trees(task, features)


def _fit_to_tags(task: BaselineTask) -> Iterator[FittedBaseline]:
    """The most frequent tag, and that of each word's first token. A token without a training word has the former."""
    assert task.test_y is not None
    is_word_NT, is_test_word_NT = task.train.y >= 0, task.test_y >= 0
    tags_W, tokens_W = (values[is_word_NT].astype(np.int64) for values in (task.train.y, task.train.x))
    if not len(tags_W):
        yield FittedBaseline(MOST_FREQUENT_TAG, None, reason="the sampled training rows have no word")
        return
    most_frequent = int(np.bincount(tags_W).argmax())
    constant_NT = np.where(is_test_word_NT, most_frequent, -1)
    yield FittedBaseline(MOST_FREQUENT_TAG, constant_NT, len(task.train.y))
    pairs, counts = np.unique(np.stack([tokens_W, tags_W], axis=1), axis=0, return_counts=True)
    pairs = pairs[np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))]  # of each token the most frequent tag first
    tokens, first = np.unique(pairs[:, 0], return_index=True)
    test_tokens_NT = task.test_x.astype(np.int64)
    position_NT = np.searchsorted(tokens, test_tokens_NT).clip(max=len(tokens) - 1)
    is_known_NT = is_test_word_NT & (tokens[position_NT] == test_tokens_NT)
    of_tokens_NT = np.where(is_known_NT, pairs[first, 1][position_NT], constant_NT)
    yield FittedBaseline("most frequent tag of each first token", of_tokens_NT, len(task.train.y))


def _fit_to_sets(task: BaselineTask) -> Iterator[FittedBaseline]:
    """The most frequent set of labels, and one linear model and one of trees for each label."""
    y_NK, num_rows, features = task.train.y, len(task.test_x), Features(task.layout)
    sets, counts = np.unique(y_NK, axis=0, return_counts=True)
    yield FittedBaseline(MOST_FREQUENT_LABELS, np.tile(sets[counts.argmax()].astype(float), (num_rows, 1)), len(y_NK))
    for name, fit, max_labels in (
        ("logistic regression for each label", fit_linear, MAX_LINEAR_CLASSES),
        ("boosted trees for each label", fit_trees, MAX_TREE_CLASSES),
    ):
        reason, predictions = "", np.tile(y_NK.mean(axis=0), (num_rows, 1))
        if task.num_classes > max_labels:
            reason = f"{task.num_classes:,} labels, more than {max_labels}, would take too long"
        num_fitted = 0
        sample = task.train.sample(MAX_ROWS // task.num_classes + MIN_ROWS)
        for label in range(0 if reason else task.num_classes):
            # A label that few rows have, or that cannot be fitted, keeps its frequency.
            is_in_N = sample.y[:, label]
            if not MIN_ROWS_OF_LABEL <= is_in_N.sum() <= len(is_in_N) - MIN_ROWS_OF_LABEL:
                continue
            rows = BaselineRows(sample.x, is_in_N)
            fitted = fit(task._replace(num_classes=2, train=rows), features)
            if fitted.predictions is None:
                reason = fitted.reason
                continue
            predictions[:, label], num_fitted = fitted.predictions[:, 1], max(num_fitted, fitted.num_rows)
        if num_fitted:
            yield FittedBaseline(name, predictions, num_fitted)
        else:
            yield FittedBaseline(name, None, reason=reason or "no label has enough rows")


def _fit_to_class_outputs(task: BaselineTask) -> Iterator[FittedBaseline]:
    """The most frequent classes, and one linear model and one of trees for each of several labels with classes.

    Predictions are probabilities (N, M, K), 0 beyond the classes of a label.
    """
    features = Features(task.layout)
    single_labels = []
    for num_classes, labels_N in zip(task.class_counts, task.train.y.T, strict=True):
        is_known_N = labels_N >= 0
        rows = BaselineRows(task.train.x[is_known_N], labels_N[is_known_N])
        single_labels.append(task._replace(num_classes=num_classes, train=rows, class_counts=()))
    fits: tuple[tuple[str, Callable[[BaselineTask], FittedBaseline]], ...] = (
        (MAJORITY_CLASSES, fit_constant),
        ("logistic regression for each label", partial(fit_linear, features=features)),
        ("boosted trees for each label", partial(fit_trees, features=features)),
    )
    for name, fit in fits:
        yield _fit_to_each(name, fit, single_labels, partial(_pad_shares, num_classes=max(task.class_counts)))


def _pad_shares(shares: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """Probabilities (N, M, K) of M labels with up to `num_classes` classes, 0 beyond the classes of a label."""
    padded = np.zeros((len(shares[0]), len(shares), num_classes))
    for number, of_label in enumerate(shares):
        padded[:, number, : of_label.shape[1]] = of_label
    return padded


def _fit_to_outputs(task: BaselineTask) -> Iterator[FittedBaseline]:
    """The means of the outputs, and one linear model and one of trees for each output, fitted to rows with a label."""
    y_NK, features = task.train.y, Features(task.layout)
    single_outputs = []
    for labels_N in y_NK.T:
        is_known_N = ~np.isnan(labels_N)
        single_outputs.append(task._replace(train=BaselineRows(task.train.x[is_known_N], labels_N[is_known_N])))
    fits: tuple[tuple[str, Callable[[BaselineTask], FittedBaseline]], ...] = (
        (OUTPUT_MEANS, fit_constant),
        ("ridge regression for each output", partial(fit_linear, features=features)),
        ("boosted trees for each output", partial(fit_trees, features=features)),
    )
    for name, fit in fits:
        yield _fit_to_each(name, fit, single_outputs, partial(np.stack, axis=1))


def _fit_to_each(
    name: str,
    fit: Callable[[BaselineTask], FittedBaseline],
    single_tasks: Sequence[BaselineTask],
    join: Callable[[Sequence[np.ndarray]], np.ndarray],
) -> FittedBaseline:
    """A baseline of several labels, fitted to each; it has no predictions if one of them could not be fitted."""
    fitted = [fit(single_task) for single_task in single_tasks]
    reason = next((baseline.reason for baseline in fitted if baseline.predictions is None), "")
    if reason:
        return FittedBaseline(name, None, reason=reason)
    predictions = [baseline.predictions for baseline in fitted if baseline.predictions is not None]
    return FittedBaseline(name, join(predictions), max(baseline.num_rows for baseline in fitted))
