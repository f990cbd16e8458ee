"""The device that ONNX Runtime computes on: the processor, or a GPU. Part of the bento, so it needs no torch."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.errors import EngineMissing
from bloomery.data_contracts.recipe_sections.serve import Serve
from bloomery.data_contracts.records.serving_device import GpuDevice

if TYPE_CHECKING:
    import onnxruntime

GPU_DISTRIBUTION = "onnxruntime-gpu"
_PROVIDERS: dict[GpuDevice, tuple[str, ...]] = {
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
CPU_PROVIDER = "CPUExecutionProvider"
_DRIVERS = (Path("/proc/driver/nvidia/gpus"), Path("/dev/dxg"))  # of Linux, and of Linux inside Windows
_MAX_ROWS = 1_024  # of a batch, for which TensorRT prepares
_PREFERRED_ROWS = 32


def resolve_device(serve: Serve) -> GpuDevice | None:
    """The GPU device of the recipe's `serve` on this machine; None for the processor. Imports no ONNX Runtime."""
    if serve.device == "auto":
        return "cuda" if _has_gpu() and _has_gpu_runtime() else None
    return None if serve.device == "cpu" else serve.device


def require_device(device: GpuDevice | None) -> None:
    """Requires that this machine can serve on `device`, as far as that shows without a session.

    Raises:
        EngineMissing: there is no NVIDIA GPU, or ONNX Runtime is installed without support for it.
    """
    if device is None:
        return
    if not _has_gpu():
        raise _missing(device, "this machine has no NVIDIA GPU", "run it on a worker with a GPU")
    if not _has_gpu_runtime():
        raise runtime_error(device)


def runtime_error(device: GpuDevice) -> EngineMissing:
    """The error of ONNX Runtime without support for `device`."""
    return _missing(
        device,
        "ONNX Runtime is installed for the processor only",
        f"pip uninstall onnxruntime, then pip install '{GPU_DISTRIBUTION}[cuda,cudnn]'",
    )


def runtime_distribution() -> str:
    """The name of the installed distribution with ONNX Runtime."""
    return GPU_DISTRIBUTION if _has_gpu_runtime() else "onnxruntime"


def select_providers(device: GpuDevice, inputs: list[onnxruntime.NodeArg]) -> list[tuple[str, dict[str, Any]]]:
    """The execution providers of a session on `device` in order of preference, with their options.

    `inputs` are those of the network. TensorRT builds an engine for batches of 1 to `_MAX_ROWS` rows, and keeps it in
    `BLOOMERY_ENGINE_CACHE`, or else in the folder for temporary files.
    """
    options: dict[str, dict[str, Any]] = {
        # Without TF32 a float32 file computes on a GPU what it computes on a processor, except for rounding.
        "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
        "TensorrtExecutionProvider": {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": _engine_cache(),
            **_profile_shapes(inputs),
        },
    }
    return [(name, options.get(name, {})) for name in (*_PROVIDERS[device], CPU_PROVIDER)]


def _profile_shapes(inputs: list[onnxruntime.NodeArg]) -> dict[str, str]:
    """The smallest, preferred and largest shapes of the inputs; none if a dimension besides the batch is dynamic.

    Then TensorRT builds a new engine whenever a shape is outside those that it has seen.
    """
    if any(not isinstance(size, int) for node in inputs for size in node.shape[1:]):
        return {}
    rows = {"min": 1, "opt": _PREFERRED_ROWS, "max": _MAX_ROWS}
    return {
        f"trt_profile_{name}_shapes": ",".join(
            f"{node.name}:{'x'.join(map(str, (count, *node.shape[1:])))}" for node in inputs
        )
        for name, count in rows.items()
    }


def _engine_cache() -> str:
    default = Path(tempfile.gettempdir()) / f"bloomery-tensorrt-{getpass.getuser()}"
    folder = os.environ.get("BLOOMERY_ENGINE_CACHE", str(default))
    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def provides(device: GpuDevice, available_providers: list[str]) -> bool:
    """Whether ONNX Runtime was built for `device`, by the providers that it names."""
    return _PROVIDERS[device][0] in available_providers


def uses_device(session: onnxruntime.InferenceSession, device: GpuDevice) -> bool:
    """Whether the session computes on `device`. ONNX Runtime falls back to the processor where a library is missing."""
    return session.get_providers()[0] == _PROVIDERS[device][0]


def fallback_error(device: GpuDevice) -> EngineMissing:
    """The error of a session that does not compute on `device` although there is a GPU."""
    libraries = "CUDA and cuDNN" if device == "cuda" else "CUDA, cuDNN and TensorRT"
    packages = f"'{GPU_DISTRIBUTION}[cuda,cudnn]'" + (" tensorrt" if device == "tensorrt" else "")
    return _missing(device, f"ONNX Runtime found no libraries of {libraries} that suit it", f"pip install {packages}")


def _missing(device: GpuDevice, problem: str, remedy: str) -> EngineMissing:
    return EngineMissing(
        problem,
        required=f"a GPU and ONNX Runtime for it, for `serve: {{device: {device}}}`",
        where="serve.device in the recipe",
        remedy=f"{remedy}; or set `serve: {{device: cpu}}`",
    )


def _has_gpu() -> bool:
    return any(path.exists() for path in _DRIVERS)


def _has_gpu_runtime() -> bool:
    try:
        importlib.metadata.distribution(GPU_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
