"""Writes boosted trees as ONNX, and compares the file with scikit-learn on all rows.

The trees are converted by skl2onnx, with one difference: a threshold is rounded down to float32, not to the nearest
number. An encoded row has float32 values, so exactly the same values are below the rounded threshold as below the
float64 one; to the nearest, a value that lies between the two would take the other branch.

skl2onnx writes the older operator, which names each node by text and numbers. compact_trees.py turns it into the newer
one, which is a third of the size.

Shapes: N rows, F columns, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.parity import require_parity
from bloomery.models.inference.runtime import INPUT, OUTPUT, create_session
from bloomery.models.tree_ensembles.boosting import FittedTrees, predict_outputs
from bloomery.models.tree_ensembles.compact_trees import build_nodes, read_attributes

TOLERANCE = 1e-4  # of an output: ONNX Runtime adds the values of leaves in float32, scikit-learn in float64
_OPSETS = {"": 18, "ai.onnx.ml": 5}
_IR_VERSION = 10


def build_onnx(trees: FittedTrees, num_columns: int) -> onnx.ModelProto:
    """The trees: x float32 (B, F) -> outputs float32 (B, K). The bytes depend on the trees only."""
    forest = read_attributes(_tree_attributes(trees))
    nodes, weights = build_nodes(forest, INPUT, OUTPUT)
    graph = helper.make_graph(
        nodes,
        "boosted_trees",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", num_columns])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", trees.num_outputs])],
        weights,
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="bloomery")


def _tree_attributes(trees: FittedTrees) -> Mapping[str, Any]:
    from skl2onnx.common.tree_ensemble import (
        add_tree_to_attribute_pairs_hist_gradient_boosting,
        get_default_tree_regressor_attribute_pairs,
    )

    attributes = get_default_tree_regressor_attribute_pairs()
    attributes["n_targets"] = trees.num_outputs
    weight = 1.0 / len(trees.models)
    base_K = np.mean([trees.baseline(model) for model in trees.models], axis=0)
    tree_id = 0
    for model in trees.models:
        outputs = trees.outputs_of_trees(model)
        for predictors in model._predictors:
            for output, tree in zip(outputs, predictors, strict=True):
                add_tree_to_attribute_pairs_hist_gradient_boosting(
                    attributes, False, tree, tree_id, weight, output, False, True, np.float32
                )
                tree_id += 1
    return {**attributes, "base_values": base_K}


def count_numbers(trees: FittedTrees) -> int:
    """The number of fitted numbers: a threshold for each split, and a value for each leaf."""
    return sum(len(tree.nodes) for model in trees.models for predictors in model._predictors for tree in predictors)


def measure_parity(trees: FittedTrees, x: np.ndarray, path: Path) -> float:
    """The largest difference of an output between the file at `path` and scikit-learn for x float32 (N, F).

    Raises:
        ParityBroken: it is above `TOLERANCE` of the largest output, or of 1.
    """
    expected_NK = predict_outputs(trees, x)
    outputs_NK = compute_outputs(create_session(path), x, is_row_by_row=False)
    error = float(np.abs(outputs_NK - expected_NK).max()) if len(x) else 0.0
    limit = TOLERANCE * max(1.0, float(np.abs(expected_NK).max()) if len(x) else 1.0)
    require_parity(
        error,
        limit,
        compared="ONNX Runtime and scikit-learn",
        rows=f"all {len(x):,} rows",
        path=path,
        remedy="report the versions of scikit-learn, skl2onnx and onnxruntime: a tree is converted wrongly",
    )
    return error
