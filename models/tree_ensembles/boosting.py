"""Fits gradient-boosted trees with scikit-learn's histogram gradient boosting.

Source: Friedman 2001, "Greedy Function Approximation: A Gradient Boosting Machine"; Ke et al. 2017, "LightGBM", whose
histograms and leaf-wise trees scikit-learn implements; Ho 1998, "The Random Subspace Method" (random columns).

Shapes: N rows, F columns, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bloomery.models.networks.config import BoostedTrees

# The logit of a class that the fitted rows do not have, as may happen in a sample of a large data set.
ABSENT_LOGIT = -20.0
_MAX_LEAF_ROWS = 20
_ROWS_PER_LEAF_ROW = 50  # with fewer training rows, a leaf may have fewer rows


class LabelledRows(NamedTuple):
    """Encoded rows: x float32 (N, F), y int64 (N,), or float32 of a regression."""

    x: np.ndarray
    y: np.ndarray


class RoundLosses(NamedTuple):
    """The mean losses before the first round and after each round."""

    train: Sequence[float]
    val: Sequence[float]


class FittedTrees(NamedTuple):
    """Models of scikit-learn, cut to their best rounds. Their outputs are averaged.

    Attributes:
        models: histogram gradient boosting of scikit-learn, one for each seed.
        num_outputs: a logit for each class, or 1 of a regression.
        losses: of the first model.
    """

    models: Sequence[Any]
    num_outputs: int
    losses: RoundLosses

    @property
    def num_rounds(self) -> int:
        """The rounds that the first model keeps."""
        return len(self.models[0]._predictors)

    @property
    def is_regression(self) -> bool:
        return not hasattr(self.models[0], "classes_")

    def outputs_of_trees(self, model: Any) -> Sequence[int]:
        """The position of the output that each tree of a round adds to."""
        if self.is_regression:
            return (0,)
        classes = [int(position) for position in model.classes_]
        return classes[1:] if len(classes) == 2 else classes  # two classes: one tree for the second one's logit

    def baseline(self, model: Any) -> np.ndarray:
        """The outputs (K,) before the first round."""
        base_K = np.zeros(self.num_outputs)
        if not self.is_regression:
            base_K[np.setdiff1d(np.arange(self.num_outputs), model.classes_)] = ABSENT_LOGIT
        base_K[list(self.outputs_of_trees(model))] += model._baseline_prediction.ravel()
        return base_K


def fit_boosted_trees(
    config: BoostedTrees, train: LabelledRows, val: LabelledRows, num_outputs: int, *, seed: int, balance_classes: bool
) -> FittedTrees:
    """Fits trees to `train`; the rounds with the lowest loss on `val` are kept. Equal arguments give equal trees.

    The labels decide the task: class indices, or standardised values of a regression.
    """
    is_regression = bool(np.issubdtype(train.y.dtype, np.floating))
    val = val if is_regression else _with_known_classes(val, train.y)
    models, first_losses = [], None
    for number in range(config.models):
        model = _make_model(config, len(train.y), seed + number, is_regression, balance_classes)
        model.fit(train.x, train.y, X_val=val.x, y_val=val.y)
        train_losses, val_losses = (-np.asarray(scores) for scores in (model.train_score_, model.validation_score_))
        losses = RoundLosses(train_losses.tolist(), val_losses.tolist())
        best = max(int(np.argmin(losses.val)), 1)
        model._predictors = model._predictors[:best]  # scikit-learn keeps the rounds after the best one, too
        models.append(model)
        first_losses = first_losses or losses
    assert first_losses is not None
    return FittedTrees(tuple(models), num_outputs, first_losses)


def _with_known_classes(val: LabelledRows, train_y: np.ndarray) -> LabelledRows:
    """The rows of the classes that the trees are fitted to: scikit-learn has no loss for others."""
    is_known_N = np.isin(val.y, train_y)
    return val if is_known_N.all() else LabelledRows(val.x[is_known_N], val.y[is_known_N])


def predict_outputs(trees: FittedTrees, x: np.ndarray) -> np.ndarray:
    """outputs_NK float64 of scikit-learn for x float32 (N, F), as the ONNX file computes them in float32."""
    total_NK = np.zeros((len(x), trees.num_outputs))
    for model in trees.models:
        outputs_NK = np.tile(trees.baseline(model), (len(x), 1))
        raw_N = model.predict(x) if trees.is_regression else model.decision_function(x)
        positions = list(trees.outputs_of_trees(model))
        outputs_NK[:, positions] = np.asarray(raw_N).reshape(len(x), -1)
        total_NK += outputs_NK
    return total_NK / len(trees.models)


def _make_model(config: BoostedTrees, num_rows: int, seed: int, is_regression: bool, balance_classes: bool) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    min_leaf_rows = config.min_leaf_rows or min(max(num_rows // _ROWS_PER_LEAF_ROW, 2), _MAX_LEAF_ROWS)
    options = {
        "learning_rate": config.learning_rate,
        "max_iter": config.max_rounds,
        "max_leaf_nodes": config.max_leaves,
        "min_samples_leaf": min_leaf_rows,
        "l2_regularization": config.l2,
        "max_features": config.column_share,
        "early_stopping": True,
        "n_iter_no_change": config.patience,
        "scoring": "loss",
        "random_state": seed % 2**32,
    }
    if is_regression:
        return HistGradientBoostingRegressor(**options)
    return HistGradientBoostingClassifier(**options, class_weight="balanced" if balance_classes else None)
