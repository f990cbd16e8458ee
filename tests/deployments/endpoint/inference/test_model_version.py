"""What a packaged version shows before it answers anyone: its files are whole, and it answers here as measured."""

from __future__ import annotations

import json

import pytest

from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.deployments.endpoint.inference.model_version import Version


def test_a_version_that_answers_otherwise_than_measured_is_refused(packaged) -> None:
    folder = packaged()
    row = {"age": 30, "height": 1.7, "town": "york"}
    examples = [{"row": row, "prediction": {"label": "old", "probabilities": {"old": 0.9, "young": 0.1}}}]
    (folder / "examples.json").write_text(json.dumps(examples))
    with pytest.raises(OutputCorrupt, match=r"examples\.json is not the file that was packaged"):
        Version(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["examples.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputCorrupt, match="for a held-out row it answers young"):
        Version(folder)


@pytest.mark.parametrize(
    ("flags", "needs_vnni", "is_told"),
    [(("avx2",), True, True), (("avx2",), False, False), (("avx2", "avx_vnni"), True, False)],
)
def test_a_version_whose_sums_would_saturate_here_says_so(
    packaged, monkeypatch, caplog, flags, needs_vnni, is_told
) -> None:
    monkeypatch.setattr("bloomery.deployments.endpoint.inference.model_version.processor_flags", lambda: flags)
    folder = packaged()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "needs_vnni": needs_vnni}))
    tag = Version(folder).tag
    assert (f"{tag} may answer otherwise than measured" in caplog.text) == is_told


@pytest.mark.parametrize("name", ["model.onnx", "encoder.json", "contract.json"])
def test_a_version_with_a_changed_or_missing_file_is_refused(packaged, name) -> None:
    folder = packaged()
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(OutputCorrupt, match=f"{name} is not the file"):
        Version(folder)
    (folder / name).unlink()
    with pytest.raises(OutputCorrupt, match="no file"):
        Version(folder)
