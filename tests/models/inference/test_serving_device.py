"""The device that a version is measured on and served by. No GPU is needed: ONNX Runtime is asked what it would do."""

from __future__ import annotations

from types import SimpleNamespace

import onnxruntime
import pytest

from bloomery.data_contracts.errors import EngineMissing
from bloomery.data_contracts.recipe_sections.serve import Serve
from bloomery.models.inference import serving_device
from bloomery.models.inference.runtime import create_session
from bloomery.models.inference.serving_device import (
    require_device,
    resolve_device,
    runtime_distribution,
    select_providers,
)


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an NVIDIA driver and ONNX Runtime for it."""
    monkeypatch.setattr(serving_device, "_has_gpu", lambda: True)
    monkeypatch.setattr(serving_device, "_has_gpu_runtime", lambda: True)


def test_auto_is_a_gpu_where_driver_and_runtime_are_there(gpu_machine: None) -> None:
    assert resolve_device(Serve()) == "cuda"
    assert resolve_device(Serve(device="cpu")) is None
    assert resolve_device(Serve(device="tensorrt")) == "tensorrt"
    assert runtime_distribution() == "onnxruntime-gpu"
    require_device("tensorrt")


@pytest.mark.parametrize("missing", ["_has_gpu", "_has_gpu_runtime"])
def test_auto_is_the_processor_where_driver_or_runtime_is_missing(
    missing: str, gpu_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_device, missing, lambda: False)
    assert resolve_device(Serve()) is None
    assert resolve_device(Serve(device="cuda")) == "cuda"
    with pytest.raises(EngineMissing) as error:
        require_device("cuda")
    assert "serve: {device: cpu}" in error.value.remedy
    assert ("onnxruntime-gpu" in error.value.remedy) == (missing == "_has_gpu_runtime")


def test_tensorrt_prepares_for_the_shapes_of_all_inputs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BLOOMERY_ENGINE_CACHE", str(tmp_path / "engines"))
    inputs = [
        SimpleNamespace(name="photo", shape=["batch", 3, 8, 8]),
        SimpleNamespace(name="table", shape=["batch", 5]),
    ]
    providers = select_providers("tensorrt", inputs)
    assert [name for name, _ in providers] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    options = providers[0][1]
    assert options["trt_profile_min_shapes"] == "photo:1x3x8x8,table:1x5"
    assert options["trt_profile_max_shapes"] == "photo:1024x3x8x8,table:1024x5"
    assert (tmp_path / "engines").is_dir()


def test_tensorrt_has_no_profile_for_texts_of_any_length() -> None:
    inputs = [SimpleNamespace(name="x", shape=["batch", "steps"])]
    assert "trt_profile_min_shapes" not in select_providers("tensorrt", inputs)[0][1]


def test_a_float32_file_computes_in_float32_on_a_gpu() -> None:
    assert dict(select_providers("cuda", []))["CUDAExecutionProvider"]["use_tf32"] == "0"


def test_a_session_is_refused_where_onnx_runtime_lacks_the_provider(exported) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime is installed for GPUs")
    with pytest.raises(EngineMissing, match="installed for the processor only"):
        create_session(exported, device="cuda")
