"""Files of boosted trees and of tabular ensembles that lose trees and members, and what they compute then."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session, softmax
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import BoostedTrees, TabM
from bloomery.models.tree_ensembles.blending import merge_onnx
from bloomery.models.tree_ensembles.boosting import FittedTrees, LabelledRows, fit_boosted_trees, predict_outputs
from bloomery.models.tree_ensembles.compact_trees import OPERATOR, Forest, find_leaves, read_nodes
from bloomery.models.tree_ensembles.onnx_graph import build_onnx
from bloomery.models.tree_ensembles.pruning import count_numbers, fit_fewer_trees, prune_ensemble, take_trees

NUM_COLUMNS = 6
CONFIG = BoostedTrees(kind="boosted_trees", max_rounds=40, patience=40, learning_rate=0.1, max_leaves=8, models=2)


def make_rows(num_outputs: int, num_rows: int, seed: int) -> LabelledRows:
    x = np.random.default_rng(seed).normal(size=(num_rows, NUM_COLUMNS)).astype(np.float32)
    signal = x[:, 0] * np.sign(x[:, 1]) + 0.1 * x[:, 2]
    if num_outputs == 1:
        return LabelledRows(x, signal.astype(np.float32))
    return LabelledRows(x, np.digitize(signal, np.linspace(-0.8, 0.8, num_outputs - 1)).astype(np.int64))


def fit(num_outputs: int, train: LabelledRows | None = None) -> FittedTrees:
    train = train or make_rows(num_outputs, 300, 0)
    val = make_rows(num_outputs, 150, 1)
    return fit_boosted_trees(CONFIG, train, val, num_outputs, seed=0, balance_classes=False)


def forest_of(model: onnx.ModelProto) -> Forest:
    (trees,) = (node for node in model.graph.node if node.op_type == OPERATOR)
    (base,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith("base"))
    return read_nodes(trees, numpy_helper.to_array(base))


def outputs_of(forest: Forest, x: np.ndarray) -> np.ndarray:
    """The outputs (N, K) by NumPy."""
    leaves_NT = find_leaves(forest, x)
    outputs_NK = np.tile(forest.base, (len(x), 1))
    for output in range(len(forest.base)):
        outputs_NK[:, output] += np.where(forest.outputs[leaves_NT] == output, forest.values[leaves_NT], 0).sum(1)
    return outputs_NK


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model)
    return run_session(create_session(model.SerializeToString()), x)


@pytest.mark.parametrize("num_outputs", [1, 2, 4])
def test_the_arrays_of_a_file_are_its_trees(num_outputs: int) -> None:
    trees, x = fit(num_outputs), make_rows(num_outputs, 500, 2).x
    forest = forest_of(build_onnx(trees, NUM_COLUMNS))
    assert outputs_of(forest, x) == pytest.approx(predict_outputs(trees, x), abs=1e-4)
    assert forest.num_trees == sum(len(rounds) for model in trees.models for rounds in model._predictors)
    every_third = np.arange(0, forest.num_trees, 3)
    leaves_NT = find_leaves(forest, x)[:, every_third]
    part = take_trees(forest, every_third)
    assert part.values[find_leaves(part, x)] == pytest.approx(forest.values[leaves_NT])


def test_missing_values_and_classes_without_rows_are_computed_as_by_scikit_learn() -> None:
    rows = make_rows(4, 300, 0)
    x = np.where(np.random.default_rng(3).random(rows.x.shape) < 0.2, np.float32("nan"), rows.x)
    trees = fit(4, LabelledRows(x, np.where(rows.y == 2, 1, rows.y)))  # no row of class 2
    model = build_onnx(trees, NUM_COLUMNS)
    assert run(model, x) == pytest.approx(predict_outputs(trees, x), abs=1e-4)
    assert outputs_of(forest_of(model), x) == pytest.approx(predict_outputs(trees, x), abs=1e-4)
    assert np.isfinite(run(prune_ensemble(model, 0.5, x), x)).all()


@pytest.mark.parametrize("num_outputs", [1, 2, 4])
def test_fewer_trees_are_smaller_and_predict_like_all_of_them(num_outputs: int) -> None:
    trees, train, test = fit(num_outputs), make_rows(num_outputs, 300, 0), make_rows(num_outputs, 500, 2)
    model = build_onnx(trees, NUM_COLUMNS)
    before = model.SerializeToString()
    half, tenth = (prune_ensemble(model, share, train.x) for share in (0.5, 0.9))
    assert model.SerializeToString() == before
    assert model.ByteSize() > 1.8 * half.ByteSize() > 6 * tenth.ByteSize()
    assert count_numbers(half) < 0.6 * count_numbers(model)
    assert run(half, test.x) == pytest.approx(outputs_of(forest_of(half), test.x), abs=1e-4)
    reference, outputs = run(model, test.x), run(half, test.x)
    if num_outputs > 1:
        assert (outputs.argmax(axis=1) != reference.argmax(axis=1)).mean() < 0.05
    # Without new weights the same trees would predict something between the mean and the model.
    unweighted = outputs_of(take_trees(forest_of(model), np.arange(0, forest_of(model).num_trees, 2)), test.x)
    errors = [float(np.sqrt(((values - reference) ** 2).mean())) for values in (outputs, unweighted)]
    assert errors[0] < 0.5 * errors[1]


def test_the_weights_need_no_label_and_few_rows_suffice() -> None:
    forest = forest_of(build_onnx(fit(1), NUM_COLUMNS))
    for num_rows in (1, 2, 40):
        fewer = fit_fewer_trees(forest, 0.5, make_rows(1, num_rows, 5).x)
        assert fewer.num_trees == round(forest.num_trees / 2)
        assert np.isfinite(fewer.values).all()
        assert np.abs(fewer.values).max() > 0
    assert fit_fewer_trees(forest, 0.999, make_rows(1, 40, 5).x).num_trees == 1


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_an_ensemble_also_loses_members_of_its_network(num_outputs: int, tmp_path) -> None:
    train, test = make_rows(num_outputs, 300, 0), make_rows(num_outputs, 400, 2)
    torch.manual_seed(0)
    edges = ((-1.0, -0.5, 0.0, 0.5, 1.0),) * NUM_COLUMNS
    config = TabM(kind="tabm", members=8, width=16, embedding=4, edges=edges)
    task = "regression" if num_outputs == 1 else "classification"
    blueprint = Blueprint(
        config=config, layout=Layout(kind="flat", shape=(NUM_COLUMNS,)), task=task, num_outputs=num_outputs
    )
    export_onnx(build_network(blueprint).eval(), torch.from_numpy(train.x), tmp_path / "network.onnx")
    trees, network = build_onnx(fit(num_outputs), NUM_COLUMNS), onnx.load(tmp_path / "network.onnx")
    shift_K = np.linspace(0, 0.1, num_outputs) if num_outputs > 1 else None
    merged = merge_onnx({"trees": (trees, 0.5), "network": (network, 0.5)}, num_outputs, shift_K)
    pruned = prune_ensemble(merged, 0.5, train.x)
    (head,) = (tensor for tensor in pruned.graph.initializer if tensor.name.endswith("head.bias"))
    assert list(head.dims) == [4, num_outputs]
    outputs, reference = run(pruned, test.x), run(merged, test.x)
    if num_outputs > 1:
        outputs, reference = softmax(outputs), softmax(reference)
    assert np.sqrt(((outputs - reference) ** 2).mean()) < 0.25 * reference.std()
    single = prune_ensemble(merged, 0.95, train.x)
    assert run(single, test.x).shape == (400, num_outputs)
    # Without trees, the members alone.
    alone = prune_ensemble(network, 0.5, train.x)
    assert alone.ByteSize() < network.ByteSize()
    assert np.isfinite(run(alone, test.x)).all()
