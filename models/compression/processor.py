"""What a processor can do with 8-bit integers, which decides how weights are written."""

from __future__ import annotations

from collections.abc import Collection

# Each multiplies pairs of 8-bit integers and adds them up in 32 bits.
_EXACT = ("amx_int8", "avx512_vnni", "avx_vnni", "avx_vnni_int8")


def needs_reduced_range(flags: Collection[str]) -> bool:
    """Whether weights should have 7 bits on a processor with these flags, as Linux names them.

    Without VNNI, an x86 processor adds two products of 8 bits up in 16 bits, where they saturate.

    Source: ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8?"; Intel, "Lower Numerical
    Precision Deep Learning Inference and Training" (2018).
    """
    return "avx2" in flags and not any(name in flags for name in _EXACT)


def has_tiles(flags: Collection[str]) -> bool:
    """Whether a processor with these flags multiplies whole tiles of 8-bit integers, for which `tiles.py` writes."""
    return "amx_int8" in flags
