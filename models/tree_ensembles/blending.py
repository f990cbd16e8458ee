"""Averages the predictions of several models, and merges them into one ONNX file.

Source: Breiman 1996, "Stacked Regressions" (weights that are not negative, chosen on rows that no member has learnt
from); Breiman 1996, "Bagging Predictors" (the choice is averaged over bootstrap samples).

Shapes: M members, N rows, K outputs, W weightings that are tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from bloomery.models.inference.runtime import INPUT, OUTPUT, softmax

_STEPS = 10  # a weight is a multiple of 1 / _STEPS before it is averaged
_NUM_DRAWS = 200
_MIN_WEIGHT = 0.05  # a member with less is left out: the file is smaller, and the prediction nearly the same
_MIN_PROBABILITY = 1e-12  # smaller probabilities are clipped, so that logarithms are finite


def choose_weights(outputs: Sequence[np.ndarray], y: np.ndarray) -> tuple[float, ...]:
    """The weights (M,) of members with these `outputs` (N, K), which add up to 1, by the mean loss of the average.

    The weights with the lowest loss are chosen on bootstrap samples of the rows and averaged: with few rows the best
    weights are a matter of chance, and members that are equally good get equal weights.

    Args:
        y: class indices int64 (N,), or standardised values float32 (N,).
    """
    is_regression = bool(np.issubdtype(y.dtype, np.floating))
    members = [np.asarray(member if is_regression else softmax(member), np.float64) for member in outputs]
    weights_WM = _all_weights(len(members))
    losses_WN = np.stack([_row_losses(_average(members, weights_M), y, is_regression) for weights_M in weights_WM])
    random = np.random.default_rng(0)
    total_M = np.zeros(len(members))
    for _ in range(_NUM_DRAWS):
        counts_N = np.bincount(random.integers(0, len(y), len(y)), minlength=len(y))
        total_M += weights_WM[int((losses_WN @ counts_N).argmin())]
    mean_M = total_M / _NUM_DRAWS
    kept_M = np.where(mean_M < _MIN_WEIGHT, 0.0, mean_M)
    return tuple((kept_M / kept_M.sum()).tolist())


def _all_weights(num_members: int) -> np.ndarray:
    """All weights (W, M) that are multiples of 1 / `_STEPS` and add up to 1."""
    steps = itertools.product(range(_STEPS + 1), repeat=num_members - 1)
    return np.array([(*parts, _STEPS - sum(parts)) for parts in steps if sum(parts) <= _STEPS]) / _STEPS


def _average(members: Sequence[np.ndarray], weights_M: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(sum(weight * member for weight, member in zip(weights_M, members, strict=True)))


def blend_outputs(outputs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The average of the members' predictions, float64 (N, K): values, or the logarithm of the mean probabilities."""
    if outputs[0].shape[1] == 1:
        return _average([member.astype(np.float64) for member in outputs], weights)
    return np.log(np.maximum(_average([softmax(member) for member in outputs], weights), _MIN_PROBABILITY))


def _row_losses(predictions_NK: np.ndarray, y: np.ndarray, is_regression: bool) -> np.ndarray:
    if is_regression:
        return np.asarray((predictions_NK[:, 0] - y) ** 2)
    return -np.log(np.maximum(predictions_NK[np.arange(len(y)), y], _MIN_PROBABILITY))


def merge_onnx(
    members: Mapping[str, tuple[onnx.ModelProto, float]], num_outputs: int, shift_K: np.ndarray | None = None
) -> onnx.ModelProto:
    """One file that computes `blend_outputs`, and adds `shift_K` to it.

    Args:
        members: the file and the weight of each, by name. A member with weight 0 is left out.
    """
    members = {name: member for name, member in members.items() if member[1] > 0}
    models = [model for model, _ in members.values()]
    if len(members) == 1 and shift_K is None:
        return models[0]
    nodes, weights, parts = [], [], []
    for name, (model, weight) in members.items():
        member = compose.add_prefix(model, f"{name}/", rename_inputs=False)
        nodes += list(member.graph.node)
        weights += [*member.graph.initializer, _tensor(weight, f"{name}/share")]
        output = f"{name}/{OUTPUT}"
        if num_outputs > 1:
            nodes.append(helper.make_node("Softmax", [output], [f"{name}/probabilities"], axis=1))
            output = f"{name}/probabilities"
        nodes.append(helper.make_node("Mul", [output, f"{name}/share"], [f"{name}/part"]))
        parts.append(f"{name}/part")
    if num_outputs == 1:
        nodes.append(helper.make_node("Sum", parts, [OUTPUT]))
    else:
        weights.append(_tensor(_MIN_PROBABILITY, "lowest"))
        nodes.append(helper.make_node("Sum", parts, ["sum"]))
        nodes.append(helper.make_node("Max", ["sum", "lowest"], ["probabilities"]))
        nodes.append(helper.make_node("Log", ["probabilities"], [OUTPUT if shift_K is None else "logarithms"]))
    if shift_K is not None:
        weights.append(_tensor(shift_K, "shift"))
        nodes.append(helper.make_node("Add", ["logarithms", "shift"], [OUTPUT]))
    graph = helper.make_graph(
        nodes,
        "tabular_ensemble",
        [models[0].graph.input[0]],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", num_outputs])],
        weights,
    )
    assert graph.input[0].name == INPUT
    opsets = {opset.domain: opset for model in models for opset in model.opset_import}
    return helper.make_model(
        graph,
        opset_imports=[opsets[domain] for domain in sorted(opsets)],
        ir_version=max(model.ir_version for model in models),
        producer_name="bloomery",
    )


def _tensor(values: np.ndarray | float, name: str) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)
