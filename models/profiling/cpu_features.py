"""What a processor can do with 8-bit integers, which decides how weights are written. Travels into the bento."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from pathlib import Path

# Each multiplies pairs of 8-bit integers and adds them up in 32 bits.
_EXACT = ("amx_int8", "avx512_vnni", "avx_vnni", "avx_vnni_int8")
_VECTOR_FLAGS = ("avx2", "avx512", "avx_vnni", "fma", "f16c", "amx", "asimd", "sve", "i8mm", "bf16")


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """The vector instructions of this processor that decide how fast a network is, as far as Linux tells."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ()
    named = re.search(r"^(?:flags|Features)\s*:(.*)$", told, flags=re.MULTILINE)  # x86 and ARM
    flags = named.group(1).split() if named else []
    return tuple(flag for flag in flags if flag.startswith(_VECTOR_FLAGS))


def needs_reduced_range(flags: Collection[str]) -> bool:
    """Whether weights should have 7 bits on a processor with these flags, as Linux names them.

    Without VNNI, an x86 processor adds two products of 8 bits up in 16 bits, where they saturate.

    Source: ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8?"; Intel, "Lower Numerical
    Precision Deep Learning Inference and Training" (2018).
    """
    return "avx2" in flags and not any(name in flags for name in _EXACT)


def has_amx(flags: Collection[str]) -> bool:
    """Whether a processor with these flags multiplies whole tiles of 8-bit integers, for which `tiles.py` writes."""
    return "amx_int8" in flags
