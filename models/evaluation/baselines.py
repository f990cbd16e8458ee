"""Baselines: simple models that a network should beat, fitted to the same encoded rows.

Shapes: N rows, F features, T steps or tokens, K classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Layout, PartSlice

# Baselines that do not read the inputs.
MAJORITY_CLASS = "majority class"
MEAN = "mean"
QUANTILE = "quantile of the labels"
MOST_FREQUENT_LABELS = "most frequent labels"
OUTPUT_MEANS = "mean of each output"
MAJORITY_CLASSES = "majority class of each label"
RANDOM_ORDER = "random order"
MOST_FREQUENT_TAG = "most frequent tag"
CONSTANT = (
    *(MAJORITY_CLASS, MEAN, QUANTILE, MOST_FREQUENT_LABELS),
    *(OUTPUT_MEANS, MAJORITY_CLASSES, RANDOM_ORDER, MOST_FREQUENT_TAG),
)
SEASONS = (4, 7, 12, 24, 48, 52, 96, 168, 365)  # steps: quarters, days, months, hours, weeks, …
_MAX_LINEAR_VALUES = 20_000_000  # rows x features x classes
_MAX_TREE_VALUES = 200_000_000  # rows x features x trees
MIN_ROWS, MAX_ROWS = 2_000, 50_000
MIN_ROWS_OF_LABEL = 2  # with and without it
_MAX_TREES, _MIN_ROUNDS, _MAX_ROUNDS = 300, 15, 100
_MAX_TREE_FEATURES = 1_000
_MAX_PIXELS = 256  # of each channel; larger images are averaged over squares
_MAX_STEP_VALUES = 1_024
MAX_TREE_CLASSES = 20
_MAX_TREE_CATEGORIES = 255  # scikit-learn's limit
MAX_LINEAR_CLASSES = 200
_BLOCK_VALUES = 16_000_000  # that are converted at once


class BaselineRows(NamedTuple):
    """Encoded rows: x float32 (N, ...), and labels y as int64 classes, or float64 in the units of the label.

    Sets of labels are 0 and 1 for each label, int64 (N, K); several numbers are float64 (N, K), nan where missing. Tags
    are int16 (N, T): the position of a word's tag at its first token, negative elsewhere.
    """

    x: np.ndarray
    y: np.ndarray

    def sample(self, num_rows: int) -> BaselineRows:
        """Returns at most `num_rows` evenly spaced rows."""
        positions = np.linspace(0, len(self.y) - 1, min(num_rows, len(self.y))).round().astype(int)
        return BaselineRows(self.x[positions], self.y[positions])


class FittedBaseline(NamedTuple):
    """A baseline's predictions, or why it has none: probabilities (N, K), numbers (N,), or tags like `y` of rows."""

    name: str
    predictions: np.ndarray | None
    num_rows: int = 0  # that it was fitted to
    reason: str = ""


class LabelWindows(NamedTuple):
    """The past values of the label in each row's window (N, T), in its units, and the rows to the predicted one."""

    train: np.ndarray
    test: np.ndarray
    horizon: int


class BaselineTask(NamedTuple):
    """What baselines are fitted to: `num_classes` is 0 for a regression."""

    score: Score
    layout: Layout
    num_classes: int
    train: BaselineRows
    test_x: np.ndarray
    windows: LabelWindows | None = None
    class_counts: tuple[int, ...] = ()  # of each of several labels with classes
    test_y: np.ndarray | None = None  # of an embedding, whose predictions are ranks of these texts, and of tags


def fit_constant(task: BaselineTask) -> FittedBaseline:
    """The frequencies of the classes, the mean, or for a quantile loss the quantile of the labels."""
    y, num_rows = task.train.y, len(task.test_x)
    if task.num_classes:
        shares_K = np.bincount(y, minlength=task.num_classes) / len(y)
        return FittedBaseline(MAJORITY_CLASS, np.tile(shares_K, (num_rows, 1)), len(y))
    if task.score.quantile is not None:
        return FittedBaseline(QUANTILE, np.full(num_rows, np.quantile(y, task.score.quantile)), len(y))
    return FittedBaseline(MEAN, np.full(num_rows, y.mean()), len(y))


def fit_naive(train_y: np.ndarray, windows: LabelWindows) -> Iterator[FittedBaseline]:
    """The last value, and the value one season before the predicted row; the training rows choose the season."""
    yield FittedBaseline("last value", windows.test[:, -1], len(train_y))
    lags = {season: season * math.ceil(windows.horizon / season) - windows.horizon for season in SEASONS}
    lags = {season: lag for season, lag in lags.items() if lag < windows.train.shape[1]}
    if not lags:
        reason = f"the window of {windows.train.shape[1]} rows is shorter than any season"
        yield FittedBaseline("seasonal naive", None, reason=reason)
        return

    def error(season: int) -> float:
        return float(np.mean((windows.train[:, -1 - lags[season]] - train_y) ** 2))

    best = min(lags, key=error)
    yield FittedBaseline(f"seasonal naive ({best} rows)", windows.test[:, -1 - lags[best]], len(train_y))


def fit_linear(task: BaselineTask, features: Features) -> FittedBaseline:
    """Logistic or ridge regression on standardised features."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    name = "logistic regression" if task.num_classes else "ridge regression"
    if task.num_classes > MAX_LINEAR_CLASSES:
        reason = f"{task.num_classes:,} classes, more than {MAX_LINEAR_CLASSES}, would take too long"
        return FittedBaseline(name, None, reason=reason)
    sample = task.train.sample(_num_rows(_MAX_LINEAR_VALUES, features.num_used * max(task.num_classes, 1)))
    model = LogisticRegression(max_iter=200) if task.num_classes else Ridge()
    scaler = StandardScaler(with_mean=not features.is_sparse)
    return _fit(name, task, make_pipeline(scaler, model), features.for_linear, sample)


def fit_trees(task: BaselineTask, features: Features) -> FittedBaseline:
    """scikit-learn's histogram gradient boosting; with many classes, fewer rounds of larger steps."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    name = "boosted trees"
    obstacle = features.tree_obstacle
    if task.num_classes > MAX_TREE_CLASSES:
        obstacle = f"{task.num_classes:,} classes, more than {MAX_TREE_CLASSES}, would take too long"
    if obstacle is not None:
        return FittedBaseline(name, None, reason=obstacle)
    num_trees_per_round = task.num_classes if task.num_classes > 2 else 1
    rounds = min(max(_MAX_TREES // num_trees_per_round, _MIN_ROUNDS), _MAX_ROUNDS)
    sample = task.train.sample(_num_rows(_MAX_TREE_VALUES, features.num_used * rounds * num_trees_per_round))
    options: dict[str, Any] = {
        "max_iter": rounds,
        "learning_rate": 0.1 if rounds == _MAX_ROUNDS else 0.3,
        "categorical_features": features.tree_categories or None,
        "random_state": 0,
    }
    if task.num_classes:
        model: Any = HistGradientBoostingClassifier(**options)
    elif task.score.quantile is not None:
        model = HistGradientBoostingRegressor(loss="quantile", quantile=task.score.quantile, **options)
    else:
        model = HistGradientBoostingRegressor(**options)
    return _fit(name, task, model, features.for_trees, _without_single_rows(sample) if task.num_classes else sample)


def _without_single_rows(sample: BaselineRows) -> BaselineRows:
    """The rows of classes with several: scikit-learn, which stops early by a share of each class, fails at one row."""
    has_several_N = np.bincount(sample.y)[sample.y] > 1
    return BaselineRows(sample.x[has_several_N], sample.y[has_several_N])


def _num_rows(max_values: int, values_per_row: int) -> int:
    return min(max(max_values // max(values_per_row, 1), MIN_ROWS), MAX_ROWS)


def _fit(
    name: str, task: BaselineTask, model: Any, convert: Callable[[np.ndarray], Any], sample: BaselineRows
) -> FittedBaseline:
    from threadpoolctl import threadpool_limits

    if task.num_classes and len(np.unique(sample.y)) < 2:
        return FittedBaseline(name, None, reason="the sampled training rows are of one class")
    # One thread: small trees on several wait for each other, which takes twenty times the CPU time on a busy machine.
    try:
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")  # of iterations that stop before they converge
            model.fit(convert(sample.x), sample.y)
            predict = model.predict_proba if task.num_classes else model.predict
            blocks = _blocks(task.test_x, Features(task.layout).num_used)
            predictions = np.concatenate([predict(convert(block)) for block in blocks])
    except Exception as failure:  # a finished training does not fail because a simple model does
        return FittedBaseline(name, None, reason=describe_failure(failure))
    if not task.num_classes:
        return FittedBaseline(name, predictions.astype(np.float64), len(sample.y))
    shares_NK = np.zeros((len(task.test_x), task.num_classes))
    shares_NK[:, model.classes_] = predictions
    return FittedBaseline(name, shares_NK, len(sample.y))


def describe_failure(failure: Exception) -> str:
    """Why a baseline was not computed: the type and the first line of an error."""
    text = str(failure).strip() or "without a message"
    return f"it failed with {type(failure).__name__}: {text.splitlines()[0][:200]}"


def _blocks(x: np.ndarray, num_used: int = 0) -> list[np.ndarray]:
    """Blocks of rows whose values, or `num_used` features of each row, need little memory in float64."""
    values_per_row = max(math.prod(x.shape[1:]), num_used, 1)
    num_blocks = math.ceil(len(x) * values_per_row / _BLOCK_VALUES)
    return np.array_split(x, max(min(num_blocks, len(x)), 1))


class Features:
    """Converts encoded rows (N, ...) to the features of baselines (N, F).

    Those of mixed rows are the features of all parts side by side; boosted trees read all parts but texts.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._parts = [(Features(place.part.layout), place) for place in layout.part_slices]

    @property
    def is_sparse(self) -> bool:
        """Whether rows are texts, of which each has few of many words."""
        return self._layout.kind == "tokens" or any(features.is_sparse for features, _ in self._parts)

    @property
    def num_used(self) -> int:
        """The number of features that are not 0 in a row."""
        layout = self._layout
        if self._parts:
            return sum(features.num_used + place.part.is_optional for features, place in self._parts)
        if layout.kind == "flat":
            return layout.num_values + sum(size for _, size in layout.categories if size <= _MAX_TREE_CATEGORIES)
        if layout.kind == "sequence":
            return layout.num_values if layout.num_values <= _MAX_STEP_VALUES else 3 * layout.shape[1]
        if layout.kind == "image":
            return layout.shape[0] * math.prod(_pooled_size(layout))
        return layout.num_values

    @property
    def tree_obstacle(self) -> str | None:
        """Why boosted trees cannot read these rows in a reasonable time; None if they can."""
        if self._parts:
            readable = self._tree_parts()
            if not readable:
                return "boosted trees do not read texts"
            if sum(features.num_used for features, _ in readable) <= _MAX_TREE_FEATURES:
                return None
        elif self.is_sparse:
            return "boosted trees do not read texts"
        if self.num_used > _MAX_TREE_FEATURES or (self._layout.kind == "image" and self.num_used > _MAX_PIXELS // 2):
            return f"{self.num_used:,} values of a row would take too long"
        return None

    @property
    def tree_categories(self) -> list[int]:
        """The positions of categories that boosted trees split as such."""
        positions, start = [], 0
        for features, place in self._tree_parts():
            positions += [start + position for position in features.tree_categories]
            start += features.num_tree_features + place.part.is_optional
        return positions or [position for position, size in self._layout.categories if size <= _MAX_TREE_CATEGORIES]

    @property
    def num_tree_features(self) -> int:
        """The number of features of a row that is not mixed, with categories as numbers."""
        return self._layout.num_values if self._layout.kind == "flat" else self.num_used

    def _tree_parts(self) -> list[tuple[Features, PartSlice]]:
        return [(features, place) for features, place in self._parts if not features.is_sparse]

    def for_trees(self, x: np.ndarray) -> np.ndarray:
        """Returns dense features with categories as numbers."""
        layout = self._layout
        if self._parts:
            return np.concatenate(
                [
                    block
                    for features, place in self._tree_parts()
                    for block in (features.for_trees(_part_of(x, place)), _flags_of(x, place))
                ],
                axis=1,
            )
        if layout.kind == "image":
            size = _pooled_size(layout)
            return np.concatenate([_pool(_as_numbers(block), size) for block in _blocks(x)]).reshape(len(x), -1)
        x = _as_numbers(x)
        if layout.kind == "sequence" and layout.num_values > _MAX_STEP_VALUES:
            return np.concatenate([x.mean(axis=1), x.std(axis=1), x[:, -1]], axis=1)
        return x.reshape(len(x), -1)

    def for_linear(self, x: np.ndarray) -> Any:
        """Returns features with one column for each small category; of texts the counts of their words, sparse."""
        if self._parts:
            return self._join_parts(x)
        if self.is_sparse:
            return self._count_tokens(x)
        dense = self.for_trees(x)
        one_hot = [
            np.eye(size)[np.clip(dense[:, position].astype(int), 0, size - 1)]
            for position, size in self._layout.categories
            if size <= _MAX_TREE_CATEGORIES
        ]
        return np.concatenate([dense, *one_hot], axis=1)

    def _join_parts(self, x: np.ndarray) -> Any:
        from scipy.sparse import csr_matrix, hstack

        blocks = [
            block
            for features, place in self._parts
            for block in (features.for_linear(_part_of(x, place)), _flags_of(x, place))
        ]
        return hstack([csr_matrix(block) for block in blocks]).tocsr() if self.is_sparse else np.hstack(blocks)

    def _count_tokens(self, x: np.ndarray) -> Any:
        """The logarithmic counts of the tokens of each row; 0 is padding."""
        return count_tokens(x, self._layout.num_tokens or int(x.max(initial=0)) + 1).log1p()


def count_tokens(x: np.ndarray, num_tokens: int) -> Any:
    """The counts of the tokens of each row (N, num_tokens), sparse; 0 is padding."""
    from scipy.sparse import csr_matrix

    tokens_NT = x.reshape(len(x), -1).astype(np.int64)
    is_token_NT = tokens_NT > 0
    starts = np.concatenate([[0], np.cumsum(is_token_NT.sum(axis=1))])
    columns = tokens_NT[is_token_NT]
    counts = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(x), num_tokens))
    counts.sum_duplicates()
    return counts


def _part_of(x_NF: np.ndarray, place: PartSlice) -> np.ndarray:
    return x_NF[:, place.start : place.stop].reshape(len(x_NF), *place.part.layout.shape)


def _flags_of(x_NF: np.ndarray, place: PartSlice) -> np.ndarray:
    """Whether an optional part is there (N, 1); nothing (N, 0) of a required one."""
    return x_NF[:, place.stop : place.stop + place.part.is_optional]


def _as_numbers(x: np.ndarray) -> np.ndarray:
    return np.nan_to_num(x.astype(np.float64, copy=False))


def _pooled_size(layout: Layout) -> tuple[int, int]:
    """Height and width at which an image has at most `_MAX_PIXELS`."""
    _, height, width = layout.shape
    factor = max(math.ceil(math.sqrt(height * width / _MAX_PIXELS)), 1)
    return max(height // factor, 1), max(width // factor, 1)


def _pool(x_NCHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Averages over rectangles, without the remaining rows and columns of pixels."""
    (height, width), (num_rows, num_columns) = x_NCHW.shape[2:], size
    tall, wide = height // num_rows, width // num_columns
    cut = x_NCHW[:, :, : num_rows * tall, : num_columns * wide]
    return cut.reshape(*x_NCHW.shape[:2], num_rows, tall, num_columns, wide).mean(axis=(3, 5))
