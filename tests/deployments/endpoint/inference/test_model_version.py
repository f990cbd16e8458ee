"""The self-test of a version: its files are complete, and its predictions are as measured."""

from __future__ import annotations

import json

import pytest

from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion


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


@pytest.mark.parametrize("name", ["model.onnx", "encoder.json", "contract.json"])
def test_a_version_with_a_changed_or_missing_file_is_rejected(packaged, name) -> None:
    folder = packaged()
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(OutputCorrupt, match=f"{name} differs from the packaged file"):
        LoadedVersion(folder)
    (folder / name).unlink()
    with pytest.raises(OutputCorrupt, match="no file"):
        LoadedVersion(folder)
