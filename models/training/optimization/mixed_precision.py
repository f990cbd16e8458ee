"""In how many bits a network multiplies while it learns."""

from __future__ import annotations

import contextlib

import torch

from bloomery.models.training.config import Loop


def autocast(loop: Loop, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """In which a network's pass forward multiplies in bfloat16, if the loop says so. Weights stay float32.

    Source: Kalamkar et al. 2019, "A Study of BFLOAT16 for Deep Learning Training", section 3; Micikevicius et al. 2018,
    "Mixed Precision Training", section 3.1 (weights that are kept in float32).
    """
    return torch.autocast(device.type, torch.bfloat16) if uses_bf16(loop, device) else contextlib.nullcontext()


def uses_bf16(loop: Loop, device: torch.device) -> bool:
    """Whether that is so: `auto` says yes to GPUs and processors with circuits for such products, and no to others.

    A processor that is held to fewer instructions than it has, as `ONEDNN_MAX_CPU_ISA` does it, counts as without.
    """
    if loop.precision != "auto":
        return loop.precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_tiles = torch.cpu.get_capabilities().get("amx_bf16", False)
    return device.type == "cpu" and has_tiles and torch.ops.mkldnn._is_mkldnn_bf16_supported()
