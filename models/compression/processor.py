"""What a processor can do with 8-bit integers, which decides how many bits weights may have."""

from __future__ import annotations

import torch

# Each multiplies pairs of 8-bit integers and adds them up in 32 bits.
_EXACT = ("amx_int8", "avx512_vnni", "avx_vnni", "avx_vnni_int8")


def instruction_sets() -> tuple[str, ...]:
    """Names of what this processor has, in alphabetic order, to be recorded with what was measured on it."""
    told = torch.cpu.get_capabilities()
    return (told["architecture"], *sorted(name for name, has in told.items() if has is True))


def needs_reduced_range(sets: tuple[str, ...]) -> bool:
    """Whether weights should have 7 bits on a processor with these `instruction_sets`.

    Without VNNI, an x86 processor adds two products of 8 bits up in 16 bits, where they saturate.

    Source: ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8?"; Intel, "Lower Numerical
    Precision Deep Learning Inference and Training" (2018).
    """
    return "x86_64" in sets and not any(name in sets for name in _EXACT)
