"""Removes trees, and members of TabM, from the ONNX file of boosted trees or of a tabular ensemble.

The trees that stay are evenly spaced among the rounds and the models. Each gets a weight, fitted by ridge regression so
that the smaller sum equals the sum of all trees on given rows. The members that stay are those whose mean is closest to
the mean of all members. Neither needs a label.

Source: Hoerl & Kennard 1970, "Ridge Regression"; Caruana et al. 2004, "Ensemble Selection from Libraries of Models"
(members are added one by one).

Shapes: N rows, F columns, K outputs, T trees, E members.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bloomery.models.inference.runtime import INPUT, create_session, softmax
from bloomery.models.tree_ensembles.compact_trees import OPERATOR, Forest, build_nodes, find_leaves, read_nodes

_MAX_ROWS = 2_000  # that weights are fitted to
_MAX_VALUES = 8_000_000  # of rows times trees of one output, and of rows times members times outputs
_RIDGE = 1e-3  # penalty on the change of a weight, as a share of the mean square of the values
_ROWS_AT_ONCE = 1_000
_MEMBER_AXIS = 1  # of the members' outputs (N, E, K)


def prune_ensemble(model: onnx.ModelProto, share: float, x: np.ndarray) -> onnx.ModelProto:
    """A copy of `model` without this share of its trees and members, fitted to rows x float32 (N, F)."""
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    _prune_members(pruned, share, x)
    _prune_trees(pruned.graph, share, x)
    return pruned


def count_numbers(model: onnx.ModelProto) -> int:
    """The number of fitted numbers of a file: thresholds, leaves and weights of more than one dimension."""
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer if len(tensor.dims) > 1)
    forests = [read_nodes(node, np.zeros(1)) for node in model.graph.node if node.op_type == OPERATOR]
    return weights + sum(len(forest.columns) + len(forest.values) for forest in forests)


def _prune_trees(graph: onnx.GraphProto, share: float, x: np.ndarray) -> None:
    trees = next((node for node in graph.node if node.op_type == OPERATOR), None)
    if trees is None:  # of weight 0 in an ensemble
        return
    added = next(node for node in graph.node if trees.output[0] in node.input)
    base = next(tensor for tensor in graph.initializer if tensor.name in added.input)
    forest = fit_fewer_trees(read_nodes(trees, numpy_helper.to_array(base)), share, x)
    nodes, weights = build_nodes(forest, trees.input[0], added.output[0])
    base.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[0]), base.name))
    renamed = nodes[0]
    renamed.output[0] = trees.output[0]
    trees.CopyFrom(renamed)


def fit_fewer_trees(forest: Forest, share: float, x: np.ndarray) -> Forest:
    """The forest without this share of the trees of each output; the values of the other leaves are scaled."""
    outputs_T = _outputs_of_trees(forest)
    base_K, parts = forest.base.copy(), []
    for output in np.unique(outputs_T):
        trees = np.flatnonzero(outputs_T == output)
        num_rows = min(max(_MAX_VALUES // len(trees), 100), _MAX_ROWS)
        part = take_trees(forest, trees)
        leaves_NT = find_leaves(part, x[_evenly_spaced(len(x), num_rows)])
        values_NT = part.values[leaves_NT].astype(np.float64)
        kept = _evenly_spaced(len(trees), max(round(len(trees) * (1 - share)), 1))
        total_N, kept_NT = values_NT.sum(axis=1), values_NT[:, kept]
        weights_T = _fit_weights(kept_NT, total_N, usual_factor=len(trees) / len(kept))
        base_K[output] += total_N.mean() - (kept_NT @ weights_T).mean()
        parts.append((trees[kept], weights_T))
    kept_T = np.concatenate([trees for trees, _ in parts])
    weights_T = np.concatenate([weights for _, weights in parts])
    order = np.argsort(kept_T)
    pruned = take_trees(forest, kept_T[order])
    scales_L = weights_T[order][_trees_of_leaves(pruned)]
    return pruned._replace(values=(pruned.values * scales_L).astype(np.float32), base=base_K)


def _fit_weights(values_NT: np.ndarray, total_N: np.ndarray, usual_factor: float) -> np.ndarray:
    """The weights of trees (T,) whose weighted sum varies like `total_N`: one factor for all, and a change of each.

    Rows among which the trees do not vary give them the factor `usual_factor`.
    """
    values_NT, total_N = values_NT - values_NT.mean(axis=0), total_N - total_N.mean()
    sum_N = values_NT.sum(axis=1)
    square = float(sum_N @ sum_N)
    factor = float(sum_N @ total_N) / square if square > 0 else usual_factor
    rest_N = total_N - factor * sum_N
    num_rows, num_trees = values_NT.shape
    penalty = max(_RIDGE * float((values_NT**2).sum()) / num_rows, np.finfo(np.float64).tiny)
    if num_trees > num_rows:
        changes_T = values_NT.T @ np.linalg.solve(values_NT @ values_NT.T + penalty * np.eye(num_rows), rest_N)
    else:
        changes_T = np.linalg.solve(values_NT.T @ values_NT + penalty * np.eye(num_trees), values_NT.T @ rest_N)
    return np.asarray(factor + changes_T)


def take_trees(forest: Forest, trees: np.ndarray) -> Forest:
    """The forest of the trees at these ascending positions."""
    trees_of_nodes, trees_of_leaves = _trees_of_nodes(forest), _trees_of_leaves(forest)
    is_kept_M, is_kept_L = np.isin(trees_of_nodes, trees), np.isin(trees_of_leaves, trees)
    # What a child refers to: inner nodes first, then leaves.
    codes = np.cumsum(np.concatenate([is_kept_M, is_kept_L])) - 1
    return Forest(
        roots=codes[forest.roots[trees]],
        columns=forest.columns[is_kept_M],
        thresholds=forest.thresholds[is_kept_M],
        left=codes[forest.left[is_kept_M]],
        right=codes[forest.right[is_kept_M]],
        missing_left=forest.missing_left[is_kept_M],
        outputs=forest.outputs[is_kept_L],
        values=forest.values[is_kept_L],
        base=forest.base,
    )


def _trees_of_nodes(forest: Forest) -> np.ndarray:
    """The tree of each inner node: the nodes of a tree follow its root."""
    return np.asarray(np.searchsorted(forest.roots, np.arange(len(forest.columns)), side="right") - 1)


def _trees_of_leaves(forest: Forest) -> np.ndarray:
    num_inner = len(forest.columns)
    trees_L = np.zeros(len(forest.values), np.int64)
    trees_M = _trees_of_nodes(forest)
    for children_M in (forest.left, forest.right):
        is_leaf_M = children_M >= num_inner
        trees_L[children_M[is_leaf_M] - num_inner] = trees_M[is_leaf_M]
    return trees_L


def _outputs_of_trees(forest: Forest) -> np.ndarray:
    outputs_T = np.zeros(forest.num_trees, np.int64)
    outputs_T[_trees_of_leaves(forest)] = forest.outputs
    return outputs_T


def _evenly_spaced(total: int, number: int) -> np.ndarray:
    """At most `number` positions among `total`, from the first to the last."""
    return np.unique(np.linspace(0, total - 1, min(number, total)).round().astype(np.int64))


class _Members(NamedTuple):
    """What the number of members of a TabM decides in the graph."""

    number: int
    outputs: str  # the tensor (N, E, K)
    expand: onnx.NodeProto  # repeats a row for each member
    tensors: list[onnx.TensorProto]  # with the members as their first dimension
    logarithm: onnx.NodeProto | None  # subtracts the logarithm of their number from the sum of probabilities


def _prune_members(model: onnx.ModelProto, share: float, x: np.ndarray) -> None:
    members = _find_members(model.graph)
    if members is None:
        return
    num_kept = max(round(members.number * (1 - share)), 1)
    kept = np.sort(_select_members(_member_outputs(model, members, x), num_kept))
    for tensor in members.tensors:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[kept], tensor.name))
    replacements = [(members.expand, 1, np.array([1, num_kept, 1], np.int64))]
    if members.logarithm is not None:
        replacements.append((members.logarithm, 1, np.array(np.log(num_kept), np.float32)))
    for node, position, value in replacements:
        name = f"{node.output[0]}_of_{num_kept}_members"  # the former constant may have other readers
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        node.input[position] = name
    _delete_unused(model.graph)


def _find_members(graph: onnx.GraphProto) -> _Members | None:
    """The members of the TabM in the graph, by the names of its parameters; None if there is none with several."""
    head = next((tensor for tensor in graph.initializer if tensor.name.endswith("head.bias")), None)
    expand = next((node for node in graph.node if node.op_type == "Expand"), None)
    if head is None or expand is None or len(head.dims) != 2 or head.dims[0] < 2:
        return None
    number = head.dims[0]
    tensors = [
        tensor
        for tensor in graph.initializer
        if ("backbone." in tensor.name or "head." in tensor.name) and tensor.dims[0] == number and len(tensor.dims) > 1
    ]
    outputs = next(node.output[0] for node in graph.node if head.name in node.input)
    sums = {node.output[0] for node in graph.node if node.op_type == "ReduceLogSumExp"}
    logarithm = next((node for node in graph.node if node.op_type == "Sub" and node.input[0] in sums), None)
    return _Members(number, outputs, expand, tensors, logarithm)


def _member_outputs(model: onnx.ModelProto, members: _Members, x: np.ndarray) -> np.ndarray:
    """The predictions of each member (N, E, K): probabilities, or values."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.append(helper.make_tensor_value_info(members.outputs, onnx.TensorProto.FLOAT, None))
    session = create_session(opened.SerializeToString())
    sample = x[_evenly_spaced(len(x), _MAX_ROWS)]
    outputs_NEK = np.concatenate(
        [
            session.run([members.outputs], {INPUT: sample[start : start + _ROWS_AT_ONCE]})[0]
            for start in range(0, len(sample), _ROWS_AT_ONCE)
        ]
    )
    num_outputs = outputs_NEK.shape[2]
    return outputs_NEK if num_outputs == 1 else softmax(outputs_NEK.reshape(-1, num_outputs)).reshape(outputs_NEK.shape)


def _select_members(outputs_NEK: np.ndarray, number: int) -> np.ndarray:
    """The members whose mean comes closest to that of all: each adds what brings the mean closest."""
    mean_NK = outputs_NEK.mean(axis=_MEMBER_AXIS)
    chosen: list[int] = []
    sum_NK = np.zeros_like(mean_NK)
    for size in range(1, number + 1):
        rest = [member for member in range(outputs_NEK.shape[_MEMBER_AXIS]) if member not in chosen]
        distances = [float((((sum_NK + outputs_NEK[:, member]) / size - mean_NK) ** 2).sum()) for member in rest]
        best = rest[int(np.argmin(distances))]
        chosen.append(best)
        sum_NK = sum_NK + outputs_NEK[:, best]
    return np.array(chosen)


def _delete_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
