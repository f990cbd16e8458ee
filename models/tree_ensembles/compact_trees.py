"""Boosted trees as arrays, and as the nodes of an ONNX file.

ONNX's operator `TreeEnsemble` stores inner nodes and leaves in arrays of numbers. Its predecessor repeats the tree, the
number and the kind of each node, most of it as text: three times the bytes for the same outputs.

Shapes: N rows, F columns, K outputs, T trees, M inner nodes, L leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPERATOR = "TreeEnsemble"
_DOMAIN = "ai.onnx.ml"
_SUM = 1  # `aggregate_function`
_LESS_OR_EQUAL = 0  # of `nodes_modes`


class Forest(NamedTuple):
    """Trees whose leaves add to outputs: arrays of trees (T,), inner nodes (M,), leaves (L,) and outputs (K,).

    A child is a position in the inner nodes, or M plus that of a leaf.
    """

    roots: np.ndarray  # inner nodes: a tree of one leaf has a node with two equal children
    columns: np.ndarray
    thresholds: np.ndarray  # float32: values at or below it go to `left`
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray  # bool: whether a missing value goes to `left`
    outputs: np.ndarray  # the output that a leaf adds to
    values: np.ndarray  # float32
    base: np.ndarray  # float64: the outputs without any tree

    @property
    def num_trees(self) -> int:
        return len(self.roots)


def read_attributes(attributes: Mapping[str, Any]) -> Forest:
    """The trees of the attributes of a `TreeEnsembleRegressor`, as skl2onnx builds them: a root is a tree's first node.

    Raises:
        ValueError: a node has another rule than `<=`.
    """
    trees, numbers = np.asarray(attributes["nodes_treeids"]), np.asarray(attributes["nodes_nodeids"])
    is_leaf = np.asarray(attributes["nodes_modes"]) == "LEAF"
    rules = set(attributes["nodes_modes"]) - {"LEAF", "BRANCH_LEQ"}
    if rules:
        raise ValueError(f"nodes of boosted trees compare by <=, not by {', '.join(sorted(rules))}")
    is_first = np.append(True, trees[1:] != trees[:-1])
    is_stump = is_leaf & is_first  # a tree of one leaf gets an inner node of its own
    has_node = ~is_leaf | is_stump
    inner = np.cumsum(has_node) - 1
    num_inner = int(has_node.sum())
    codes = np.where(is_leaf, num_inner + np.cumsum(is_leaf) - 1, inner)  # what a parent refers to
    positions = {pair: position for position, pair in enumerate(zip(trees, numbers, strict=True))}

    def children(name: str) -> np.ndarray:
        pairs = zip(trees, attributes[name], is_leaf, strict=True)
        own = [position if leaf else positions[tree, child] for position, (tree, child, leaf) in enumerate(pairs)]
        return codes[own][has_node]

    targets = {
        pair: (output, value)
        for *pair_values, output, value in zip(
            attributes["target_treeids"],
            attributes["target_nodeids"],
            attributes["target_ids"],
            attributes["target_weights"],
            strict=True,
        )
        for pair in [tuple(pair_values)]
    }
    leaves = [targets[tree, number] for tree, number in zip(trees[is_leaf], numbers[is_leaf], strict=True)]
    return Forest(
        roots=inner[is_first],
        columns=np.asarray(attributes["nodes_featureids"])[has_node],
        thresholds=np.asarray(attributes["nodes_values"], np.float32)[has_node],
        left=children("nodes_truenodeids"),
        right=children("nodes_falsenodeids"),
        missing_left=np.asarray(attributes["nodes_missing_value_tracks_true"], bool)[has_node],
        outputs=np.array([output for output, _ in leaves], np.int64),
        values=np.array([value for _, value in leaves], np.float32),
        base=np.asarray(attributes["base_values"], np.float64),
    )


def build_nodes(forest: Forest, x: str, outputs: str) -> tuple[Sequence[onnx.NodeProto], Sequence[onnx.TensorProto]]:
    """The nodes that compute the tensor `outputs` from the tensor `x`, and the weights that they read."""
    num_inner = len(forest.columns)
    is_left_leaf_M, is_right_leaf_M = forest.left >= num_inner, forest.right >= num_inner
    attributes: dict[str, Any] = {
        "n_targets": len(forest.base),
        "aggregate_function": _SUM,
        "tree_roots": forest.roots,
        "nodes_featureids": forest.columns,
        "nodes_truenodeids": np.where(is_left_leaf_M, forest.left - num_inner, forest.left),
        "nodes_falsenodeids": np.where(is_right_leaf_M, forest.right - num_inner, forest.right),
        "nodes_trueleafs": is_left_leaf_M,
        "nodes_falseleafs": is_right_leaf_M,
        "leaf_targetids": forest.outputs,
    }
    if forest.missing_left.any():
        attributes["nodes_missing_value_tracks_true"] = forest.missing_left
    integers = {name: np.asarray(values, np.int64).tolist() for name, values in attributes.items()}
    tensors = {
        "nodes_splits": forest.thresholds,
        "nodes_modes": np.full(num_inner, _LESS_OR_EQUAL, np.uint8),
        "leaf_weights": forest.values,
    }
    trees = helper.make_node(
        OPERATOR,
        [x],
        [f"{outputs}_of_trees"],
        domain=_DOMAIN,
        **integers,
        **{name: numpy_helper.from_array(values) for name, values in tensors.items()},
    )
    base = numpy_helper.from_array(forest.base.astype(np.float32), f"{outputs}_base")
    return [trees, helper.make_node("Add", [f"{outputs}_of_trees", base.name], [outputs])], [base]


def read_nodes(trees: onnx.NodeProto, base_K: np.ndarray) -> Forest:
    """The trees of a node that `build_nodes` has built."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in trees.attribute}
    num_inner = len(attributes["nodes_featureids"])
    left_M, right_M = (
        np.asarray(attributes[f"nodes_{side}nodeids"]) + num_inner * np.asarray(attributes[f"nodes_{side}leafs"])
        for side in ("true", "false")
    )
    return Forest(
        roots=np.asarray(attributes["tree_roots"]),
        columns=np.asarray(attributes["nodes_featureids"]),
        thresholds=numpy_helper.to_array(attributes["nodes_splits"]),
        left=left_M,
        right=right_M,
        missing_left=np.asarray(attributes.get("nodes_missing_value_tracks_true", np.zeros(num_inner)), bool),
        outputs=np.asarray(attributes["leaf_targetids"]),
        values=numpy_helper.to_array(attributes["leaf_weights"]),
        base=np.asarray(base_K, np.float64),
    )


def find_leaves(forest: Forest, x: np.ndarray) -> np.ndarray:
    """The leaf (N, T) that each row of x float32 (N, F) reaches in each tree."""
    num_inner, num_leaves = len(forest.columns), len(forest.values)
    leaves = np.arange(num_inner, num_inner + num_leaves)  # lead to themselves
    left, right = np.append(forest.left, leaves), np.append(forest.right, leaves)
    columns = np.append(forest.columns, np.zeros(num_leaves, np.int64))
    thresholds = np.append(forest.thresholds, np.zeros(num_leaves, np.float32))
    missing_left = np.append(forest.missing_left, np.zeros(num_leaves, bool))
    nodes_NT = np.tile(forest.roots, (len(x), 1))
    rows_N1 = np.arange(len(x))[:, None]
    while (nodes_NT < num_inner).any():
        values_NT = x[rows_N1, columns[nodes_NT]]
        goes_left_NT = np.where(np.isnan(values_NT), missing_left[nodes_NT], values_NT <= thresholds[nodes_NT])
        nodes_NT = np.where(goes_left_NT, left[nodes_NT], right[nodes_NT])
    return nodes_NT - num_inner
