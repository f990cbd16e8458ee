"""Mixed precision in training."""

from __future__ import annotations

import contextlib

import torch

from bloomery.models.training.config import Loop


def autocast(loop: Loop, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which the forward pass uses bfloat16 products, if configured. Weights stay float32.

    Source: Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training", section 3; Micikevicius et al. 2018,
    "Mixed Precision Training", section 3.1 (float32 weights).
    """
    return torch.autocast(device.type, torch.bfloat16) if uses_bf16(loop, device) else contextlib.nullcontext()


def uses_bf16(loop: Loop, device: torch.device) -> bool:
    """Whether products use bfloat16. With `auto`, this depends on hardware support of the GPU or CPU.

    A CPU with instructions restricted by `ONEDNN_MAX_CPU_ISA` counts as one without support.
    """
    if loop.precision != "auto":
        return loop.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_tiles = torch.cpu.get_capabilities().get("amx_bf16", False)
    return device.type == "cpu" and has_tiles and torch.ops.mkldnn._is_mkldnn_bf16_supported()
