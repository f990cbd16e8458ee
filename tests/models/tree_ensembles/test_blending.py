"""The weight of boosted trees in an average with a network, and the file that computes the average."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bloomery.models.inference.runtime import create_session, run_session, softmax
from bloomery.models.tree_ensembles.blending import blend_outputs, choose_tree_weight, merge_onnx

RANDOM = np.random.default_rng(0)


def linear_model(num_outputs: int, seed: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """A file of one matrix product with 3 inputs, and the matrix."""
    weights = np.random.default_rng(seed).normal(size=(3, num_outputs)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", num_outputs])],
        [numpy_helper.from_array(weights, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), weights


@pytest.mark.parametrize("num_outputs", [1, 2, 4])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_merged_file_computes_the_average(num_outputs: int, weight: float) -> None:
    trees, left = linear_model(num_outputs, 0)
    network, right = linear_model(num_outputs, 1)
    x = RANDOM.normal(size=(7, 3)).astype(np.float32)
    merged = merge_onnx(trees, network, weight, num_outputs)
    onnx.checker.check_model(merged)
    outputs = run_session(create_session(merged.SerializeToString()), x)
    expected = blend_outputs(x @ left, x @ right, weight)
    if num_outputs > 1:
        outputs, expected = softmax(outputs), softmax(expected)
    assert outputs == pytest.approx(expected, abs=1e-5)
    assert (len(merged.graph.node) == 1) == (weight in (0.0, 1.0))


def test_with_many_rows_the_better_member_has_all_weight() -> None:
    y = RANDOM.normal(size=5000).astype(np.float32)
    noise = RANDOM.normal(size=5000)
    good, bad = (y + 0.01 * noise)[:, None], (y + 5 * noise + 3)[:, None]
    assert choose_tree_weight(good, bad, y) == 1.0
    assert choose_tree_weight(bad, good, y) == 0.0


def test_members_whose_losses_do_not_differ_have_equal_weights() -> None:
    y = RANDOM.integers(0, 3, 40)
    outputs = RANDOM.normal(size=(40, 3))
    assert choose_tree_weight(outputs, outputs + RANDOM.normal(size=(40, 3)) * 0.01, y) == 0.5


def test_members_with_independent_errors_are_both_used() -> None:
    y = RANDOM.normal(size=2000).astype(np.float32)
    left, right = ((y + RANDOM.normal(size=2000))[:, None] for _ in range(2))
    assert 0.3 <= choose_tree_weight(left, right, y) <= 0.7


def test_probabilities_of_zero_have_finite_logarithms() -> None:
    certain = np.array([[1e4, -1e4], [-1e4, 1e4]])
    assert np.isfinite(blend_outputs(certain, certain, 0.5)).all()
