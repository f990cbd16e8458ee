"""The device that networks learn on, and the processor settings that the bits of weights depend on."""

from __future__ import annotations

import os
import platform

from bloomery.models.profiling.cpu_features import cpu_flags
from bloomery.models.training.config import Device, Training


def select_device(device: Device) -> str:
    """Returns the device for a recipe's `device`: `auto` is a GPU if torch finds one."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def configure_processor(training: Training) -> str:
    """Fixes everything that the bits of the weights depend on, and returns a description of it."""
    import torch

    from bloomery.models.training.determinism import set_deterministic
    from bloomery.models.training.optimization.mixed_precision import uses_bf16

    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")
    instruction_sets = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in names)
    description = f"{set_deterministic(training.seed, training.num_threads)}, {instruction_sets}"
    if training.precision != "auto":
        return description
    return f"{description}, {'bf16' if uses_bf16(training, torch.device(select_device(training.device))) else 'fp32'}"


def instruction_set() -> dict[str, str]:
    """Variables under which weights repeat bit for bit on most machines, if set before the first arithmetic."""
    if not has_avx2():
        return {}
    # Bits depend on the instruction set: take one that nearly every x86 machine has.
    return {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def has_avx2() -> bool:
    """Whether this is an x86 processor with AVX2, as far as Linux reports it."""
    return platform.machine() in ("x86_64", "AMD64") and "avx2" in cpu_flags()
