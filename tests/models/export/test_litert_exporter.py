"""Exports to LiteRT by another Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bloomery.data_contracts.errors import EngineMissing
from bloomery.models.export import litert_script
from bloomery.models.export.litert_exporter import PYTHON_VARIABLE, export_litert, require_litert
from bloomery.models.export.onnx_exporter import TOLERANCE


@pytest.mark.slow
def test_litert_and_pytorch_have_the_same_outputs(trained, splits, tmp_path: Path):
    python = os.environ.get(PYTHON_VARIABLE)
    if python is None:
        pytest.skip(f"{PYTHON_VARIABLE} names no Python with litert-torch")
    require_litert(python)
    error = export_litert(trained.network, splits.test.x[:4], tmp_path / "network.tflite", python)
    assert 0 <= error <= TOLERANCE
    assert (tmp_path / "network.tflite").read_bytes()[4:8] == b"TFL3"


@pytest.mark.parametrize("python", [None, "no-such-python", sys.executable], ids=["unset", "absent", "without litert"])
def test_missing_packages_are_reported(python, trained, splits, tmp_path: Path):
    with pytest.raises(EngineMissing, match="networks cannot be exported to LiteRT"):
        require_litert(python)
    with pytest.raises(EngineMissing, match="networks cannot be exported to LiteRT") as caught:
        export_litert(trained.network, splits.test.x[:2], tmp_path / "network.tflite", python)
    assert "pip install litert-torch" in caught.value.remedy
    assert not (tmp_path / "network.tflite").exists()


def test_the_converter_script_imports_no_bloomery_module():
    lines = [line.strip() for line in Path(litert_script.__file__).read_text().splitlines()]
    imports = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    assert set(imports) == {"sys", "numpy", "litert_torch", "torch", "ai_edge_litert.interpreter"}
