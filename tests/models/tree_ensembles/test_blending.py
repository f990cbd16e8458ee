"""The weights of models in an average, and the file that computes the average."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bloomery.models.inference.runtime import create_session, run_session, softmax
from bloomery.models.tree_ensembles.blending import blend_outputs, choose_weights, merge_onnx

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
@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.3, 0.7), (1.0, 0.0), (0.5, 0.2, 0.3), (0.6, 0.0, 0.4)])
def test_the_merged_file_computes_the_average(num_outputs: int, weights: tuple[float, ...]) -> None:
    files, matrices = zip(*(linear_model(num_outputs, seed) for seed in range(len(weights))), strict=True)
    x = RANDOM.normal(size=(7, 3)).astype(np.float32)
    names = ("trees", "network", "linear")[: len(weights)]
    merged = merge_onnx(dict(zip(names, zip(files, weights, strict=True), strict=True)), num_outputs)
    onnx.checker.check_model(merged)
    outputs = run_session(create_session(merged.SerializeToString()), x)
    expected = blend_outputs([x @ matrix for matrix in matrices], weights)
    if num_outputs > 1:
        outputs, expected = softmax(outputs), softmax(expected)
    assert outputs == pytest.approx(expected, abs=1e-5)
    assert (len(merged.graph.node) == 1) == (1.0 in weights)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.4, 0.6)])
def test_the_merged_file_shifts_the_logits_of_classes(weights: tuple[float, ...]) -> None:
    files, matrices = zip(*(linear_model(3, seed) for seed in range(2)), strict=True)
    x, shift = RANDOM.normal(size=(5, 3)).astype(np.float32), np.array([-2.0, 0.0, -0.5])
    merged = merge_onnx({"trees": (files[0], weights[0]), "network": (files[1], weights[1])}, 3, shift)
    onnx.checker.check_model(merged)
    outputs = run_session(create_session(merged.SerializeToString()), x)
    expected = blend_outputs([x @ matrix for matrix in matrices], weights) + shift
    assert softmax(outputs) == pytest.approx(softmax(expected), abs=1e-5)


def test_with_many_rows_the_better_member_has_all_weight() -> None:
    y = RANDOM.normal(size=5000).astype(np.float32)
    noise = RANDOM.normal(size=5000)
    good, bad = (y + 0.01 * noise)[:, None], (y + 5 * noise + 3)[:, None]
    assert choose_weights([good, bad], y) == (1.0, 0.0)
    assert choose_weights([bad, good], y) == (0.0, 1.0)
    assert choose_weights([bad, good, bad], y) == (0.0, 1.0, 0.0)


def test_members_whose_losses_do_not_differ_have_similar_weights() -> None:
    y = RANDOM.normal(size=60).astype(np.float32)
    members = [(y + RANDOM.normal(size=60))[:, None] for _ in range(2)]
    assert choose_weights(members, y) == pytest.approx((0.5, 0.5), abs=0.25)
    assert sum(choose_weights([*members, members[0]], y)) == pytest.approx(1)


def test_members_with_independent_errors_are_all_used() -> None:
    y = RANDOM.normal(size=2000).astype(np.float32)
    members = [(y + RANDOM.normal(size=2000))[:, None] for _ in range(3)]
    assert choose_weights(members, y) == pytest.approx((1 / 3, 1 / 3, 1 / 3), abs=0.1)


def test_weights_of_probabilities_follow_the_labels() -> None:
    y = RANDOM.integers(0, 3, 400)
    right = np.where(np.arange(3) == y[:, None], 2.0, 0.0)
    left, network, _ = choose_weights([RANDOM.normal(size=(400, 3)), right, RANDOM.normal(size=(400, 3)) * 3], y)
    assert network > 0.9
    assert left < 0.1


def test_probabilities_of_zero_have_finite_logarithms() -> None:
    certain = np.array([[1e4, -1e4], [-1e4, 1e4]])
    assert np.isfinite(blend_outputs([certain, certain], (0.5, 0.5))).all()
