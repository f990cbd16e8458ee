"""Vector instructions of the CPU, which determine how 8-bit weights are stored. Part of the bento."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from pathlib import Path

# Each multiplies pairs of 8-bit integers and adds the products up in 32 bits.
_EXACT_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "avx_vnni_int8")
_VECTOR_FLAGS = ("avx2", "avx512", "avx_vnni", "fma", "f16c", "amx", "asimd", "sve", "i8mm", "bf16")


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """The vector instructions of this CPU, by Linux's names; empty on other systems."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, flags=re.MULTILINE)  # x86 and ARM
    flags = match.group(1).split() if match else []
    return tuple(flag for flag in flags if flag.startswith(_VECTOR_FLAGS))


def needs_reduced_range(flags: Collection[str]) -> bool:
    """Whether weights should have 7 bits on a CPU with these flags.

    Without VNNI, x86 CPUs add two 8-bit products up in 16 bits, where they saturate.

    Source: ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8?"; Intel, "Lower Numerical
    Precision Deep Learning Inference and Training" (2018).
    """
    return "avx2" in flags and not any(name in flags for name in _EXACT_INT8)


def has_amx(flags: Collection[str]) -> bool:
    """Whether a CPU with these flags multiplies tiles of 8-bit integers, see quantization/amx_tiles.py."""
    return "amx_int8" in flags
