"""Outputs as probabilities or values, independent of the other rows of a batch."""

from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest

from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode_labels, fit, partial_statistics
from bloomery.models.inference import outputs
from bloomery.models.inference.outputs import compute_outputs, label_deviation, predictions_from
from bloomery.models.inference.runtime import create_session

LABELS = {"classification": ["a", "b", "b", "c"], "regression": [10.0, 20.0, 20.0, 50.0]}


def encoder_for(task: str) -> Encoder:
    rows = pa.record_batch({"id": [0, 1, 2, 3], "x": [1.0, 2.0, 3.0, 4.0], "y": LABELS[task]})
    number = {"kind": "number", "columns": ["x"]}
    features = Features.model_validate({"key": "id", "label": "y", "task": task, "inputs": [number]})
    return fit(features, next(iter(partial_statistics(features, [rows])))["statistics"].to_pylist())


def test_classification_outputs_become_probabilities() -> None:
    shares = predictions_from(encoder_for("classification"), np.array([[0.0, 0.0, 0.0], [0.0, 100.0, 0.0]], np.float32))
    assert shares == pytest.approx(np.array([[1 / 3, 1 / 3, 1 / 3], [0, 1, 0]]), abs=1e-12)


def test_regression_outputs_are_converted_to_the_units_of_the_label() -> None:
    encoder = encoder_for("regression")
    standard = encode_labels(encoder, pa.array(LABELS["regression"])).to_numpy()
    assert (standard.mean(), standard.std()) == pytest.approx((0, 1), abs=1e-6)
    assert predictions_from(encoder, standard[:, None]) == pytest.approx(LABELS["regression"])
    assert label_deviation(encoder) == pytest.approx(np.std(LABELS["regression"]))


@pytest.fixture
def dynamically_quantized(tmp_path: Path) -> Path:
    """An ONNX file that rounds a batch to 8 bits, between the smallest and the largest value of the batch."""
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["logits"]),
        ],
        "rounded",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
    )
    path = tmp_path / "rounded.onnx"
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def test_row_by_row_outputs_do_not_depend_on_other_rows(dynamically_quantized: Path) -> None:
    runtime = create_session(dynamically_quantized)
    x = np.array([[0.1, 0.2, 0.3], [100.0, 0.0, -100.0]], np.float32)
    single, batch = (compute_outputs(runtime, rows, is_row_by_row=True) for rows in (x[:1], x))
    assert (single == batch[:1]).all()
    assert not (compute_outputs(runtime, x, is_row_by_row=False)[:1] == single).all()


def test_outputs_of_many_rows_and_of_none_are_in_order(dynamically_quantized: Path) -> None:
    runtime = create_session(dynamically_quantized)
    x = np.tile(np.arange(3000, dtype=np.float32)[:, None], 3)
    answers = compute_outputs(runtime, x, is_row_by_row=True)
    assert answers == pytest.approx(x, rel=0.01)
    assert compute_outputs(runtime, x[:0], is_row_by_row=True).shape == (0, 3)


def test_wide_rows_run_in_smaller_batches(dynamically_quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = outputs.run_session
    monkeypatch.setattr(outputs, "run_session", lambda runtime, x: sizes.append(len(x)) or run(runtime, x))
    x = np.ones((10, 3), np.float32)
    runtime = create_session(dynamically_quantized)
    expected = compute_outputs(runtime, x, is_row_by_row=False)
    monkeypatch.setattr(outputs, "_BATCH_VALUES", 12)
    assert np.array_equal(compute_outputs(runtime, x, is_row_by_row=False), expected)
    assert sizes == [10, 4, 4, 2]
