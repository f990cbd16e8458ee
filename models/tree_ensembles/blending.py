"""Averages the predictions of boosted trees and of a network, and merges both into one ONNX file.

Source: Breiman 1996, "Stacked Regressions" (weights that are not negative, chosen on rows that no member has learnt
from); Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3 (the rule of one standard error).

Shapes: N rows, K outputs, W weights that are tried.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from bloomery.models.inference.runtime import INPUT, OUTPUT, softmax

_WEIGHTS_W = np.linspace(0.0, 1.0, 11)
_EQUAL = 0.5
_MIN_PROBABILITY = 1e-12  # smaller probabilities are clipped, so that logarithms are finite


def choose_tree_weight(trees_NK: np.ndarray, network_NK: np.ndarray, y: np.ndarray) -> float:
    """The weight of the trees, from 0 to 1, by the mean loss of the average for validation rows.

    Of the weights whose loss is within one standard error of the lowest one, it is the closest to 0.5: with few rows
    the lowest loss is a matter of chance, and an average of both is the safer choice.

    Args:
        y: class indices int64 (N,), or standardised values float32 (N,).
    """
    is_regression = bool(np.issubdtype(y.dtype, np.floating))
    losses_WN = np.stack(
        [_row_losses(blend_outputs(trees_NK, network_NK, weight), y, is_regression) for weight in _WEIGHTS_W]
    )
    best = int(losses_WN.mean(axis=1).argmin())
    differences_WN = losses_WN - losses_WN[best]
    error_W = differences_WN.std(axis=1) / np.sqrt(max(len(y), 1))
    is_close_W = differences_WN.mean(axis=1) <= error_W
    return float(min(_WEIGHTS_W[is_close_W], key=lambda weight: abs(weight - _EQUAL)))


def blend_outputs(trees_NK: np.ndarray, network_NK: np.ndarray, weight: float) -> np.ndarray:
    """The average of both predictions, float64 (N, K): values, or the logarithm of the mean probabilities."""
    if trees_NK.shape[1] == 1:
        return weight * trees_NK.astype(np.float64) + (1 - weight) * network_NK
    probabilities_NK = weight * softmax(trees_NK) + (1 - weight) * softmax(network_NK)
    return np.log(np.maximum(probabilities_NK, _MIN_PROBABILITY))


def _row_losses(outputs_NK: np.ndarray, y: np.ndarray, is_regression: bool) -> np.ndarray:
    if is_regression:
        return (outputs_NK[:, 0] - y) ** 2
    return -outputs_NK[np.arange(len(y)), y]


def merge_onnx(trees: onnx.ModelProto, network: onnx.ModelProto, weight: float, num_outputs: int) -> onnx.ModelProto:
    """One file that computes `blend_outputs`. A member with weight 0 is left out."""
    if weight in (0.0, 1.0):
        return trees if weight == 1.0 else network
    nodes, weights, names = [], [], []
    for prefix, model, share in (("trees/", trees, weight), ("network/", network, 1 - weight)):
        member = compose.add_prefix(model, prefix, rename_inputs=False)
        nodes += list(member.graph.node)
        weights += [*member.graph.initializer, numpy_helper.from_array(np.array(share, np.float32), f"{prefix}share")]
        output = f"{prefix}{OUTPUT}"
        if num_outputs > 1:
            nodes.append(helper.make_node("Softmax", [output], [f"{prefix}probabilities"], axis=1))
            output = f"{prefix}probabilities"
        nodes.append(helper.make_node("Mul", [output, f"{prefix}share"], [f"{prefix}part"]))
        names.append(f"{prefix}part")
    if num_outputs == 1:
        nodes.append(helper.make_node("Add", names, [OUTPUT]))
    else:
        weights.append(numpy_helper.from_array(np.array(_MIN_PROBABILITY, np.float32), "lowest"))
        nodes.append(helper.make_node("Add", names, ["sum"]))
        nodes.append(helper.make_node("Max", ["sum", "lowest"], ["probabilities"]))
        nodes.append(helper.make_node("Log", ["probabilities"], [OUTPUT]))
    graph = helper.make_graph(
        nodes,
        "tabular_ensemble",
        [trees.graph.input[0]],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", num_outputs])],
        weights,
    )
    assert graph.input[0].name == INPUT
    opsets = {opset.domain: opset for model in (trees, network) for opset in model.opset_import}
    return helper.make_model(
        graph,
        opset_imports=[opsets[domain] for domain in sorted(opsets)],
        ir_version=max(trees.ir_version, network.ir_version),
        producer_name="bloomery",
    )
