"""Measurement of candidates on the test split: their scores, their tables in MLflow and their predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bloomery.data_contracts.records.records import ClassRecall, Flips, Release
from bloomery.models.compression.config import CandidateSpec
from bloomery.models.evaluation.metrics import proportion
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import fit, partial_statistics
from bloomery.models.profiling.cpu_features import cpu_flags
from bloomery.models.profiling.latency import summarise
from bloomery.models.training.data.batches import Examples
from bloomery.tasks.compress.built_candidate import BuiltCandidate
from bloomery.tasks.compress.candidate_builder import CandidateSplits
from bloomery.tasks.compress.candidate_measurement import measure_candidates
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs

pytestmark = pytest.mark.slow

X = np.linspace(-1, 1, 40, dtype=np.float32)
TRUTH = (X > 0).astype(np.int64)


def network(path: Path, shift: float) -> Path:
    """Writes an ONNX file that predicts the second class where x is above `-shift / 2`."""
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


def test_candidates_are_measured_overall_by_class_and_by_slice(home: Path, release: Release) -> None:
    home_folder = settings().home
    home_folder.mkdir(parents=True, exist_ok=True)
    keys, town_values, labels = np.arange(40), ["A", "B"] * 20, np.where(TRUTH, "up", "down")
    rows = pa.table({"id": keys, "town": town_values, "x": X, "y": labels})
    pq.write_table(rows, home_folder / "rows.parquet")
    number = {"kind": "number", "columns": ["x"], "scale": "none"}
    features = Features.model_validate({"key": "id", "label": "y", "inputs": [number]})
    encoder = fit(features, next(iter(partial_statistics(features, rows.to_batches())))["statistics"].to_pylist())
    (home_folder / "encoder.json").write_text(encoder.model_dump_json())
    trained = release.bento.choice.candidates.trained
    checked = trained.dataset.valid_rows.model_copy(update={"uri": "rows.parquet"})
    dataset = trained.dataset.model_copy(
        update={"valid_rows": checked, "classes": ("down", "up"), "encoder_uri": "encoder.json"}
    )
    trained = trained.model_copy(update={"dataset": dataset, "slice_columns": ("town",)})
    out = Output("compress", "key", home_folder / "stages" / "compress" / "key")
    out.folder.mkdir(parents=True)
    latencies = tuple(summarise(np.array([1e-3, 2e-3]), np.array([2e-3, 2e-3]), size) for size in (1, 32))
    specs = {
        "fp32": (CandidateSpec(name="fp32"), 0.0),
        "shifted": (CandidateSpec(name="shifted", quantize="dynamic"), 0.4),
    }
    built = [
        BuiltCandidate(spec, network(out.path(f"{name}.onnx"), shift), 3, 0.0, num_macs=2, calibration=calibration)
        for (name, (spec, shift)), calibration in zip(specs.items(), (None, "c0ffee"), strict=True)
    ]
    test = Examples(torch.from_numpy(X[:, None]), torch.from_numpy(TRUTH), keys)
    splits = CandidateSplits(train=test, val=test, test=test)
    baseline, shifted = measure_candidates(out, built, splits, trained, dict.fromkeys(specs, latencies), "fp32")
    assert (baseline.score.value, baseline.degradation.high, baseline.is_row_by_row) == (1.0, 0.0, False)
    assert (shifted.score.value, shifted.degradation.value, shifted.is_row_by_row) == (0.9, pytest.approx(0.1), True)
    assert (baseline.flips, shifted.flips) == (Flips(num_lost=0, num_gained=0), Flips(num_lost=4, num_gained=0))
    # The candidate predicts 4 of 40 rows of each split as another class, all of them of one class.
    assert (baseline.disagreements, baseline.max_degradation) == ((), 0.0)
    assert {compared.split: (compared.num_changed, compared.num_rows) for compared in shifted.disagreements} == {
        "val": (4, 40),
        "train": (4, 40),
        "test": (4, 40),
    }
    assert shifted.max_degradation == proportion(12, 120).high < shifted.degradation.high
    assert shifted.weakest_class == ClassRecall(
        name="down", num_rows=20, num_right=16, num_compared=40, num_lost=8, num_gained=0
    )
    assert (baseline.num_nonzero, shifted.num_nonzero) == (2, 3)  # the baseline has a bias of 0
    assert 0 < baseline.zstd_bytes < baseline.size_bytes == out.path("fp32.onnx").stat().st_size
    assert baseline.coded_bytes is not None
    assert baseline.coded_bytes < baseline.zstd_bytes
    # Measured from the file, not taken from the specification.
    assert (shifted.num_macs, shifted.integer_share) == (2, 0.0)
    assert shifted.latency_at(32).batch_size == 32
    predictions = pq.read_table(settings().path(shifted.predictions_uri))
    assert predictions["truth"].to_pylist() == labels.tolist()
    run = mlflow_runs.client().get_run(shifted.run_id).data
    assert run.tags["onnxruntime.version"] == onnxruntime.__version__
    assert (run.tags["onnx.version"], run.tags["torch.version"]) == (onnx.__version__, torch.__version__)
    assert run.tags["calibration.sha256"] == "c0ffee"
    assert "calibration.sha256" not in mlflow_runs.client().get_run(baseline.run_id).data.tags
    assert run.params["seed"] == "0"
    assert run.tags["processor.flags"] == " ".join(cpu_flags())
    metrics = run.metrics
    assert (metrics["train_disagreement"], metrics["test_disagreement"]) == (0.1, 0.1)
    assert (metrics["flips_lost"], metrics["num_nonzero"], metrics["latency_b32_ratio"]) == (4, 3, 0.75)
    assert (metrics["num_macs"], metrics["integer_share"], metrics["coded_bytes"]) == (2, 0, shifted.coded_bytes)
    assert metrics["accuracy_drop_low"] < metrics["accuracy_drop"] < metrics["accuracy_drop_high"]
    assert (metrics["test_accuracy"], metrics["test_auc"]) == (0.9, 1.0)
    assert metrics["test_log_loss"] > mlflow_runs.client().get_run(baseline.run_id).data.metrics["test_log_loss"]
    down_row, up_row = table_of(shifted.run_id, "per_class.json")
    assert (down_row[:5], up_row[:3]) == (["down", 20, 0.8, 1.0, 0.2], ["up", 20, 1.0])
    assert down_row[5] < 0.2 < down_row[6]
    assert up_row[3] == pytest.approx(20 / 24)
    by_slice = table_of(shifted.run_id, "per_slice.json")
    assert [row[:4] for row in by_slice] == [["town", "A", 20, 0.9], ["town", "B", 20, 0.9]]
    assert [row[6] for row in by_slice] == [0.1, 0.1]


def table_of(run_id: str, name: str) -> list[list[object]]:
    path = mlflow_runs.client().download_artifacts(run_id, name)
    rows: list[list[object]] = json.loads(Path(path).read_text())["data"]
    return rows
