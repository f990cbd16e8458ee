"""Linear models of encoded rows: what they learn, and the ONNX file that they become."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.tree_ensembles.boosting import LabelledRows
from bloomery.models.tree_ensembles.linear import FittedLinear, build_onnx, fit_linear, plan_design, predict_outputs

LAYOUT = Layout(kind="flat", shape=(5,), categories=((1, 3), (4, 40)))  # numbers at 0, 2 and 3


def make_rows(num_outputs: int, num_rows: int = 300, seed: int = 0) -> LabelledRows:
    """Rows of three numbers and two categories; the label depends on one of each. Number 3 is constant."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(num_rows, 5)).astype(np.float32)
    x[:, 1], x[:, 3], x[:, 4] = random.integers(0, 3, num_rows), 7.0, random.integers(0, 40, num_rows)
    signal = 2 * x[:, 0] + np.array([-2.0, 0.0, 2.0])[x[:, 1].astype(int)]
    if num_outputs == 1:
        return LabelledRows(x, (signal + 0.1 * random.normal(size=num_rows)).astype(np.float32))
    return LabelledRows(x, np.digitize(signal, np.linspace(-1.5, 1.5, num_outputs - 1)).astype(np.int64))


def fit(num_outputs: int, rows: LabelledRows) -> FittedLinear:
    return fit_linear(rows, LAYOUT, num_outputs, seed=0, balance_classes=False)


@pytest.mark.parametrize("num_outputs", [1, 2, 4])
def test_the_file_computes_the_outputs(num_outputs: int) -> None:
    linear, test = fit(num_outputs, make_rows(num_outputs)), make_rows(num_outputs, 500, seed=1)
    test.x[:20, 4] = 90  # beyond the known categories, as the networks clamp it
    test.x[20:40, 1] = -1
    model = build_onnx(linear, 5)
    onnx.checker.check_model(model)
    outputs = run_session(create_session(model.SerializeToString()), test.x)
    expected = predict_outputs(linear, test.x)
    assert outputs == pytest.approx(expected, abs=1e-4)
    if num_outputs == 1:
        assert np.mean((expected[40:, 0] - test.y[40:]) ** 2) < 0.05 * test.y.var()
    else:
        assert (expected[40:].argmax(axis=1) == test.y[40:]).mean() > 0.75


def test_categories_become_columns() -> None:
    design = plan_design(LAYOUT)
    assert (design.numbers, design.num_columns) == ((0, 2, 3), 46)
    matrix = design.matrix(np.array([[0.5, 2, -1, 7, 39]], np.float32))
    assert np.flatnonzero(matrix[0]).tolist() == [0, 1, 2, 5, 45]


def test_a_class_without_rows_keeps_its_position_and_is_unlikely() -> None:
    rows = make_rows(4)
    some = LabelledRows(rows.x[rows.y != 1], rows.y[rows.y != 1])
    outputs = predict_outputs(fit(4, some), rows.x)
    assert not (outputs.argmax(axis=1) == 1).any()
    assert (outputs[:, 1] == -20).all()


def test_rows_of_one_class_are_no_error() -> None:
    rows = make_rows(2)
    linear = fit(2, LabelledRows(rows.x, np.ones_like(rows.y)))
    assert (predict_outputs(linear, rows.x).argmax(axis=1) == 1).all()


def test_noise_is_penalized_more_than_signal() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 30)).astype(np.float32)
    layout = Layout(kind="flat", shape=(30,))
    noise = fit_linear(
        LabelledRows(x, random.normal(size=40).astype(np.float32)), layout, 1, seed=0, balance_classes=False
    )
    signal = fit_linear(LabelledRows(x, x.sum(axis=1)), layout, 1, seed=0, balance_classes=False)
    assert np.abs(noise.weights).mean() < 0.3 * np.abs(signal.weights).mean()


def test_balanced_classes_raise_the_rare_one() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 5)).astype(np.float32)
    x[:, 1] = x[:, 4] = 0
    y = (x[:, 0] + random.normal(size=400) > 1.8).astype(np.int64)
    plain, balanced = (
        fit_linear(LabelledRows(x, y), LAYOUT, 2, seed=0, balance_classes=flag) for flag in (False, True)
    )
    counts = [(predict_outputs(linear, x).argmax(axis=1) == 1).sum() for linear in (plain, balanced)]
    assert counts[1] > 2 * counts[0]
