"""Boosted trees: what they learn, when they stop, and the ONNX file that they become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bloomery.data_contracts.errors import ParityBroken
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.config import BoostedTrees
from bloomery.models.tree_ensembles.boosting import FittedTrees, LabelledRows, fit_boosted_trees, predict_outputs
from bloomery.models.tree_ensembles.onnx_graph import TOLERANCE, build_onnx, count_numbers, measure_parity

SMALL = BoostedTrees(kind="boosted_trees", max_rounds=60, patience=10, learning_rate=0.2, max_leaves=8)


def make_rows(num_classes: int, num_rows: int = 400, seed: int = 0) -> LabelledRows:
    """Rows of six numbers; the class, or the value with `num_classes` 1, depends on two of them."""
    x = np.random.default_rng(seed).normal(size=(num_rows, 6)).astype(np.float32)
    signal = x[:, 0] * np.sign(x[:, 1]) + 0.1 * x[:, 2]
    if num_classes == 1:
        return LabelledRows(x, signal.astype(np.float32))
    return LabelledRows(x, np.digitize(signal, np.linspace(-0.8, 0.8, num_classes - 1)).astype(np.int64))


def fit(num_classes: int, config: BoostedTrees = SMALL, *, seed: int = 0, balance_classes: bool = False) -> FittedTrees:
    rows, val = make_rows(num_classes), make_rows(num_classes, 200, seed=1)
    return fit_boosted_trees(config, rows, val, num_classes, seed=seed, balance_classes=balance_classes)


def save(trees: FittedTrees, path: Path) -> Path:
    onnx.save(build_onnx(trees, 6), path)
    return path


@pytest.mark.parametrize(("num_classes", "models"), [(1, 1), (1, 2), (2, 1), (2, 3), (4, 1), (4, 2)])
def test_the_file_agrees_with_scikit_learn_on_all_rows(num_classes: int, models: int, tmp_path: Path) -> None:
    trees, test = fit(num_classes, SMALL.model_copy(update={"models": models})), make_rows(num_classes, 1000, seed=2)
    path = save(trees, tmp_path / "trees.onnx")
    assert measure_parity(trees, test.x, path) <= TOLERANCE
    outputs = run_session(create_session(path), test.x)
    assert outputs.shape == (1000, num_classes)
    if num_classes > 1:
        assert (outputs.argmax(axis=1) == test.y).mean() > 0.75
        assert (outputs.argmax(axis=1) == predict_outputs(trees, test.x).argmax(axis=1)).all()
    else:
        assert np.mean((outputs[:, 0] - test.y) ** 2) < 0.3 * test.y.var()


def test_values_next_to_a_threshold_take_the_branch_that_scikit_learn_takes(tmp_path: Path) -> None:
    """The nearest float32 of a threshold may be the value above it, which would then go left."""
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2), dtype=np.float32)
    x = np.repeat([[low], [high]], 100, axis=0).astype(np.float32)
    y = np.repeat([-1.0, 1.0], 100).astype(np.float32)
    config = SMALL.model_copy(update={"column_share": 1.0, "learning_rate": 1.0, "l2": 0.0})
    trees = fit_boosted_trees(config, LabelledRows(x, y), LabelledRows(x, y), 1, seed=0, balance_classes=False)
    onnx.save(build_onnx(trees, 1), tmp_path / "trees.onnx")
    assert run_session(create_session(tmp_path / "trees.onnx"), x)[:, 0] == pytest.approx(y, abs=1e-5)
    assert measure_parity(trees, x, tmp_path / "trees.onnx") <= TOLERANCE


def test_equal_arguments_give_equal_files_and_another_seed_another_one() -> None:
    first, second, other = (build_onnx(fit(2, seed=seed), 6).SerializeToString() for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_the_rounds_with_the_lowest_validation_loss_are_kept() -> None:
    noise = LabelledRows(make_rows(2).x, np.random.default_rng(3).integers(0, 2, 400))
    trees = fit_boosted_trees(SMALL, noise, make_rows(2, 200, seed=4), 2, seed=0, balance_classes=False)
    losses = trees.losses.val
    assert trees.num_rounds == max(int(np.argmin(losses)), 1)
    assert len(losses) - 1 < SMALL.max_rounds  # it stopped long before
    assert count_numbers(trees) <= trees.num_rounds * (2 * SMALL.max_leaves - 1)


def test_a_class_without_rows_gets_an_improbable_logit(tmp_path: Path) -> None:
    rows = make_rows(3)
    kept = rows.y != 1
    present = LabelledRows(rows.x[kept], rows.y[kept])
    trees = fit_boosted_trees(SMALL, present, present, 3, seed=0, balance_classes=False)
    outputs = run_session(create_session(save(trees, tmp_path / "trees.onnx")), rows.x)
    assert measure_parity(trees, rows.x, tmp_path / "trees.onnx") <= 20 * TOLERANCE
    assert set(outputs.argmax(axis=1)) == {0, 2}
    assert (outputs[:, 1] == -20).all()


def test_balanced_classes_raise_the_recall_of_a_rare_class() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    y = (x[:, 0] + np.random.default_rng(1).normal(size=2000) > 2.5).astype(np.int64)
    rows, val = LabelledRows(x[:1500], y[:1500]), LabelledRows(x[1500:], y[1500:])
    recalls = []
    for balance in (False, True):
        trees = fit_boosted_trees(SMALL, rows, val, 2, seed=0, balance_classes=balance)
        recalls.append((predict_outputs(trees, x).argmax(axis=1)[y == 1] == 1).mean())
    assert recalls[1] > recalls[0]


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    path = save(fit(2), tmp_path / "other.onnx")
    with pytest.raises(ParityBroken, match="ONNX Runtime and scikit-learn differ by up to"):
        measure_parity(fit(2, seed=5), make_rows(2).x, path)


def test_the_file_needs_nothing_of_python_and_reads_any_number_of_rows(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(str(save(fit(4), tmp_path / "trees.onnx")))
    for num_rows in (0, 1, 33):
        assert session.run(None, {"x": make_rows(4, 40).x[:num_rows]})[0].shape == (num_rows, 4)


def test_validation_rows_of_a_class_that_the_fitted_rows_lack_do_not_count() -> None:
    rows, val = make_rows(3), make_rows(3, 200, seed=1)
    kept, known = rows.y != 1, val.y != 1
    present = LabelledRows(rows.x[kept], rows.y[kept])
    trees, expected = (
        fit_boosted_trees(SMALL, present, chosen, 3, seed=0, balance_classes=False)
        for chosen in (val, LabelledRows(val.x[known], val.y[known]))
    )
    assert trees.losses == expected.losses
