"""Fits ridge or logistic regression to encoded rows, and writes it as ONNX.

Numbers are standardised, and the number of a category becomes a column for each category. The strength of the penalty
is cross-validated on the training rows.

Source: Hoerl & Kennard 1970, "Ridge Regression"; Hastie, Tibshirani & Friedman 2009, "The Elements of Statistical
Learning", sections 3.4.1, 4.4.4 and 7.10.

Shapes: N rows, F values of an encoded row, D columns of the design matrix, C categories, K outputs.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.inference.runtime import INPUT, OUTPUT
from bloomery.models.tree_ensembles.boosting import ABSENT_LOGIT, LabelledRows

_MAX_VALUES = 1_000_000  # columns x outputs x rows that are fitted: seconds; of more rows, an even sample
_MIN_ROWS = 500
_MAX_CHOICE_VALUES = 4 * _MAX_VALUES  # with more, which even few rows may have, the strength is not cross-validated
_NUM_FOLDS = 5
_PENALTIES = np.logspace(-1, 4, 16)  # of ridge regression, in squared standard units
_STRENGTHS = np.logspace(1, -4, 11)  # inverse penalties of logistic regression
_WIDE_STRENGTH = 1e-3
_MAX_STEPS = 200
_MIN_PROBABILITY = 1e-12
_OPSET, _IR_VERSION = 18, 8


class Design(NamedTuple):
    """The columns that a linear model reads: numbers as they are encoded, and one for each category."""

    numbers: tuple[int, ...]
    categories: tuple[tuple[int, int], ...]

    @property
    def num_columns(self) -> int:
        """D."""
        return len(self.numbers) + sum(size for _, size in self.categories)

    def matrix(self, x: np.ndarray) -> np.ndarray:
        """The design matrix float64 (N, D) for x float32 (N, F)."""
        columns = [x[:, list(self.numbers)].astype(np.float64)]
        for position, size in self.categories:
            columns.append(np.eye(size)[np.clip(x[:, position].astype(np.int64), 0, size - 1)])
        return np.concatenate(columns, axis=1)


class FittedLinear(NamedTuple):
    """outputs = matrix @ weights (D, K) + bias (K,): values of a regression, or logits."""

    design: Design
    weights: np.ndarray
    bias: np.ndarray

    @property
    def num_numbers(self) -> int:
        """The number of fitted numbers."""
        return int(self.weights.size + self.bias.size)


def plan_design(layout: Layout) -> Design:
    """The columns for rows of this layout."""
    coded = {position for position, _ in layout.categories}
    numbers = tuple(position for position in range(layout.num_values) if position not in coded)
    return Design(numbers, layout.categories)


def fit_linear(
    train: LabelledRows, layout: Layout, num_outputs: int, *, seed: int, balance_classes: bool
) -> FittedLinear:
    """Fits ridge or logistic regression to `train`; the labels decide which. Equal arguments give equal weights."""
    design = plan_design(layout)
    rows = _sample(train, _MAX_VALUES // max(design.num_columns * num_outputs, 1))
    matrix_ND = design.matrix(rows.x)
    mean_D, scale_D = matrix_ND.mean(axis=0), matrix_ND.std(axis=0)
    scale_D[scale_D < 1e-8] = 1.0
    standard_ND = (matrix_ND - mean_D) / scale_D
    is_regression = bool(np.issubdtype(rows.y.dtype, np.floating))
    if is_regression:
        weights_DK, bias_K = _fit_ridge(standard_ND, rows.y)
    else:
        weights_DK, bias_K = _fit_logistic(standard_ND, rows.y, num_outputs, seed, balance_classes)
    weights_DK = weights_DK / scale_D[:, None]
    return FittedLinear(design, weights_DK, bias_K - mean_D @ weights_DK)


def _sample(rows: LabelledRows, max_rows: int) -> LabelledRows:
    """At most about `max_rows` evenly spaced rows, but some in any case."""
    max_rows = max(max_rows, _MIN_ROWS)
    if len(rows.y) <= max_rows:
        return rows
    positions = np.linspace(0, len(rows.y) - 1, max_rows).round().astype(np.int64)
    return LabelledRows(rows.x[positions], rows.y[positions])


def _fit_ridge(x_ND: np.ndarray, y_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (D, 1) and bias (1,) of the penalty with the lowest leave-one-out error."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(alphas=_PENALTIES).fit(x_ND, y_N.astype(np.float64))
    return model.coef_.reshape(-1, 1), np.array([float(model.intercept_)])


def _fit_logistic(
    x_ND: np.ndarray, y_N: np.ndarray, num_outputs: int, seed: int, balance_classes: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (D, K) and biases (K,) of the strength with the lowest cross-validated loss."""
    x_ND, y_N = x_ND[y_N >= 0], y_N[y_N >= 0]
    classes = np.unique(y_N)
    weights_DK = np.zeros((x_ND.shape[1], num_outputs))
    bias_K = np.full(num_outputs, ABSENT_LOGIT)
    if len(classes) < 2:
        bias_K[classes] = 0.0
        return weights_DK, bias_K
    is_wide = x_ND.size * num_outputs > _MAX_CHOICE_VALUES
    strength = _WIDE_STRENGTH if is_wide else _choose_strength(x_ND, y_N, seed, balance_classes)
    model = _fit_strength(x_ND, y_N, strength, balance_classes)
    positions = classes[1:] if len(classes) == 2 else classes  # two classes: weights of the second one's logit
    bias_K[classes] = 0.0
    weights_DK[:, positions] = model.coef_.T
    bias_K[positions] = model.intercept_
    return weights_DK, bias_K


def _choose_strength(x_ND: np.ndarray, y_N: np.ndarray, seed: int, balance_classes: bool) -> float:
    """The strength with the lowest mean loss of rows that were left out; a class absent from a fold costs the same."""
    from sklearn.model_selection import KFold

    losses = np.zeros(len(_STRENGTHS))
    num_folds = min(_NUM_FOLDS, len(y_N))
    for kept, left_out in KFold(num_folds, shuffle=True, random_state=seed % 2**32).split(x_ND):
        if len(np.unique(y_N[kept])) < 2:
            continue
        for number, strength in enumerate(_STRENGTHS):
            model = _fit_strength(x_ND[kept], y_N[kept], strength, balance_classes)
            shares_NK = np.zeros((len(left_out), int(y_N.max()) + 1))
            shares_NK[:, model.classes_] = model.predict_proba(x_ND[left_out])
            true_N = shares_NK[np.arange(len(left_out)), y_N[left_out]]
            losses[number] -= np.log(np.maximum(true_N, _MIN_PROBABILITY)).sum()
    return float(_STRENGTHS[int(losses.argmin())])


def _fit_strength(x_ND: np.ndarray, y_N: np.ndarray, strength: float, balance_classes: bool) -> Any:
    from sklearn.linear_model import LogisticRegression

    weight = "balanced" if balance_classes else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that end before they converge
        return LogisticRegression(C=strength, max_iter=_MAX_STEPS, class_weight=weight).fit(x_ND, y_N)


def predict_outputs(linear: FittedLinear, x: np.ndarray) -> np.ndarray:
    """outputs_NK float64 for x float32 (N, F), as the ONNX file computes them in float32."""
    return np.asarray(linear.design.matrix(x) @ linear.weights + linear.bias)


def build_onnx(linear: FittedLinear, num_columns: int) -> onnx.ModelProto:
    """x float32 (B, F) -> outputs float32 (B, K): a matrix product, and a row of weights for each category."""
    num_outputs = len(linear.bias)
    num_numbers = len(linear.design.numbers)
    tensors: dict[str, np.ndarray] = {
        "numbers": np.array(linear.design.numbers, np.int64),
        "weights": linear.weights[:num_numbers].astype(np.float32),
        "bias": linear.bias.astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", [INPUT, "numbers"], ["selected"], axis=1),
        helper.make_node("MatMul", ["selected", "weights"], ["product"]),
    ]
    total, start = "product", num_numbers
    for number, (position, size) in enumerate(linear.design.categories):
        name = f"category_{number}"
        tensors |= {
            f"{name}_position": np.array(position, np.int64),
            f"{name}_first": np.array(0, np.int64),
            f"{name}_last": np.array(size - 1, np.int64),
            f"{name}_weights": linear.weights[start : start + size].astype(np.float32),
        }
        nodes += [
            helper.make_node("Gather", [INPUT, f"{name}_position"], [f"{name}_value"], axis=1),
            helper.make_node("Cast", [f"{name}_value"], [f"{name}_code"], to=TensorProto.INT64),
            helper.make_node("Clip", [f"{name}_code", f"{name}_first", f"{name}_last"], [f"{name}_known"]),
            helper.make_node("Gather", [f"{name}_weights", f"{name}_known"], [f"{name}_part"], axis=0),
            helper.make_node("Add", [total, f"{name}_part"], [f"{name}_total"]),
        ]
        total, start = f"{name}_total", start + size
    nodes.append(helper.make_node("Add", [total, "bias"], [OUTPUT]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", num_columns])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", num_outputs])],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="bloomery")
