"""What candidates come to on the test part: their scores, their tables in MLflow and their answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_contracts.records import Latency, Release
from models.compression.config import CandidateSpec
from models.config import Features
from models.encoder import fit, summarise_batches
from models.training.batches import Examples
from tasks import tracking
from tasks.candidates import Made, measure_all
from tasks.settings import settings
from tasks.store import Output

pytestmark = pytest.mark.slow

X = np.linspace(-1, 1, 40, dtype=np.float32)
TRUTH = (X > 0).astype(np.int64)


def network(path: Path, shift: float) -> Path:
    """An ONNX file that answers the second class where x is above `-shift / 2`."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [
            onnx.numpy_helper.from_array(np.array([[-1.0, 1.0]], np.float32), "w"),
            onnx.numpy_helper.from_array(np.array([0.0, shift], np.float32), "b"),
        ],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def test_every_candidate_is_told_by_class_and_by_slice(home: Path, release: Release) -> None:
    root = settings().home
    root.mkdir(parents=True, exist_ok=True)
    keys, towns, labels = np.arange(40), ["A", "B"] * 20, np.where(TRUTH, "up", "down")
    rows = pa.table({"id": keys, "town": towns, "x": X, "y": labels})
    pq.write_table(rows, root / "rows.parquet")
    number = {"kind": "number", "columns": ["x"], "scale": "none"}
    features = Features.model_validate({"key": "id", "label": "y", "inputs": [number]})
    encoder = fit(features, next(iter(summarise_batches(features, rows.to_batches())))["summary"].to_pylist())
    (root / "encoder.json").write_text(encoder.model_dump_json())
    trained = release.bento.chosen.options.trained
    checked = trained.dataset.checked.model_copy(update={"uri": "rows.parquet"})
    dataset = trained.dataset.model_copy(
        update={"checked": checked, "classes": ("down", "up"), "encoder_uri": "encoder.json"}
    )
    trained = trained.model_copy(update={"dataset": dataset, "slices": ("town",)})
    out = Output("compress", "key", root / "stages" / "compress" / "key")
    out.folder.mkdir(parents=True)
    latency = Latency(batch_size=1, p50_ms=1.0, p99_ms=2.0, ratio=1.0)
    specs = {"fp32": (CandidateSpec(name="fp32"), 0.0), "off": (CandidateSpec(name="off", quantize="dynamic"), 0.4)}
    made = [Made(spec, network(out.path(f"{name}.onnx"), shift), 3, 0.0) for name, (spec, shift) in specs.items()]
    test = Examples(torch.from_numpy(X[:, None]), torch.from_numpy(TRUTH), keys)
    right, off = measure_all(out, made, test, trained, dict.fromkeys(specs, latency), "fp32")
    assert (right.score.value, right.worse.high, right.is_row_by_row) == (1.0, 0.0, False)
    assert (off.score.value, off.worse.value, off.is_row_by_row) == (0.9, pytest.approx(0.1), True)
    answers = pq.read_table(settings().path(off.answers_uri))
    assert answers["truth"].to_pylist() == labels.tolist()
    figures = tracking.client().get_run(off.run_id).data.metrics
    assert (figures["test_accuracy"], figures["test_auc"]) == (0.9, 1.0)
    assert figures["test_log_loss"] > tracking.client().get_run(right.run_id).data.metrics["test_log_loss"]
    of_down, of_up = table_of(off.run_id, "per_class.json")
    assert (of_down, of_up[:3]) == (["down", 20, 0.8, 1.0], ["up", 20, 1.0])
    assert of_up[3] == pytest.approx(20 / 24)
    assert [row[:4] for row in table_of(off.run_id, "per_slice.json")] == [
        ["town", "A", 20, 0.9],
        ["town", "B", 20, 0.9],
    ]


def table_of(run_id: str, name: str) -> list[list[object]]:
    place = tracking.client().download_artifacts(run_id, name)
    rows: list[list[object]] = json.loads(Path(place).read_text())["data"]
    return rows
