"""The self-test of a version: its files are complete, and its predictions are as measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.data_contracts.serving.predictions import format_prediction, max_difference
from bloomery.deployments.endpoint.asgi.openapi import openapi_document
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session


def test_a_version_with_other_predictions_than_measured_is_rejected(packaged) -> None:
    folder = packaged()
    row = {"age": 30, "height": 1.7, "town": "york"}
    examples = [{"row": row, "prediction": {"label": "old", "probabilities": {"old": 0.9, "young": 0.1}}}]
    (folder / "examples.json").write_text(json.dumps(examples))
    with pytest.raises(OutputCorrupt, match=r"examples\.json differs from the packaged file"):
        LoadedVersion(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["examples.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputCorrupt, match="the prediction for a held-out row is young"):
        LoadedVersion(folder)


@pytest.mark.parametrize(
    ("flags", "needs_vnni", "warns"),
    [(("avx2",), True, True), (("avx2",), False, False), (("avx2", "avx_vnni"), True, False)],
)
def test_a_version_whose_sums_saturate_on_this_processor_warns(
    packaged, monkeypatch, caplog, flags, needs_vnni, warns
) -> None:
    monkeypatch.setattr("bloomery.deployments.endpoint.inference.model_version.cpu_flags", lambda: flags)
    folder = packaged()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "needs_vnni": needs_vnni}))
    tag = LoadedVersion(folder).tag
    assert (f"{tag} may predict differently than measured" in caplog.text) == warns


def test_a_version_of_a_gpu_computes_on_the_processor_where_there_is_none(packaged, caplog) -> None:
    folder = packaged()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "device": "cuda"}))
    tag = LoadedVersion(folder).tag
    assert f"{tag} computes on the processor, more slowly than measured on cuda" in caplog.text


def test_values_of_a_version_with_conformal_intervals_have_limits(packaged) -> None:
    folder = packaged(is_regression=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    values = np.array([10.0, 20.0])
    assert LoadedVersion(folder).format_predictions(values) == [{"value": 10.0}, {"value": 20.0}]
    interval = {"level": 0.9, "half_width": 1.5, "num_rows": 40, "coverage": {"value": 0.9, "low": 0.8, "high": 0.95}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "interval": interval}))
    version = LoadedVersion(folder)
    first, _ = version.format_predictions(values)
    assert first == {"value": 10.0, "lower": 8.5, "upper": 11.5}
    assert version.predictions_table(values).to_pylist()[1] == {"value": 20.0, "lower": 18.5, "upper": 21.5}
    schema = openapi_document(version, "off", has_card=False)["components"]["schemas"]["Prediction"]
    assert schema["required"] == ["value", "lower", "upper"]
    assert "90%" in schema["properties"]["lower"]["description"]


def test_a_version_of_sets_of_labels_returns_all_that_are_likely(packaged) -> None:
    folder = packaged()
    encoder = json.loads((folder / "encoder.json").read_text())
    encoder["features"]["task"] = "multilabel"
    (folder / "encoder.json").write_text(json.dumps(encoder))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["encoder.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    version = LoadedVersion(folder)
    first, second = version.encoder.classes
    shares = np.array([[0.2, 0.9], [0.5, 0.7], [0.1, 0.4]])
    predictions = version.format_predictions(shares)
    assert [prediction["labels"] for prediction in predictions] == [[second], [first, second], []]
    assert predictions[0]["probabilities"] == {first: 0.2, second: 0.9}
    assert version.predictions_table(shares).to_pylist()[1] == {"labels": [first, second], "probabilities": [0.5, 0.7]}
    assert format_prediction(predictions[2]) == "no label (at most 0.4000)"
    assert max_difference(predictions[0], {**predictions[0], "probabilities": {first: 0.2, second: 0.4}}) == 0.5
    # Each label has a probability of its own.
    x = np.ones((1, *version.encoder.input_shape), np.float32)
    logits = compute_outputs(create_session(folder / "model.onnx"), x, is_row_by_row=False)
    assert version.predict_encoded(x) == pytest.approx(1 / (1 + np.exp(-logits)))
    schema = openapi_document(version, "off", has_card=False)["components"]["schemas"]["Prediction"]
    assert schema["required"] == ["labels", "probabilities"]
    assert schema["properties"]["labels"]["items"] == {"enum": [first, second]}


@pytest.mark.parametrize("name", ["model.onnx", "encoder.json", "contract.json"])
def test_a_version_with_a_changed_or_missing_file_is_rejected(packaged, name) -> None:
    folder = packaged()
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(OutputCorrupt, match=f"{name} differs from the packaged file"):
        LoadedVersion(folder)
    (folder / name).unlink()
    with pytest.raises(OutputCorrupt, match="no file"):
        LoadedVersion(folder)
