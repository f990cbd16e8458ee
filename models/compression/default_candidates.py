"""The candidates of a recipe that names none.

The command line reads this module before any heavy import, so nothing here needs torch.
"""

from __future__ import annotations

from typing import Any

from bloomery.models.compression.config import NOT_COMPRESSIBLE, PRUNABLE, CandidateSpec, Pruning, QuantizationMode

_TREE_RATIOS = (0.25, 0.5, 0.75, 0.9)  # of trees that the default candidates lose


def default_candidates(
    kind: str, mode: QuantizationMode | None = None, *, weight_only: bool = False, amx: bool = False
) -> tuple[CandidateSpec, ...]:
    """The candidates for a network of `kind` if the recipe names none.

    Args:
        mode: of quantization; default: by the kind of network.
        weight_only: stores weights in 8 bits, for networks without 8-bit kernels (GRU and Elman layers).
        amx: the processor has AMX (cpu_features.py).
    """
    if kind in NOT_COMPRESSIBLE:
        named = {f"pruned-{round(100 * ratio)}": Pruning(ratio=ratio) for ratio in _TREE_RATIOS}
        return (CandidateSpec(name="fp32"), *(CandidateSpec(name=name, prune=named[name]) for name in named))
    # Recurrent cells and attention have no 8-bit kernels for static ranges.
    mode = mode or ("static" if kind in ("cnn", "lenet", "resnet", "mlp") else "dynamic")
    quantized = {"quantize": mode, "amx": amx and mode == "static"}
    int8_fields: dict[str, Any] = {"weight_only": "int8"} if weight_only else quantized
    unpruned = (CandidateSpec(name="fp32"), CandidateSpec(name="int8", **int8_fields))
    if kind not in PRUNABLE:
        return unpruned
    return (
        *unpruned,
        CandidateSpec(name="pruned", prune=Pruning(ratio=0.5)),
        CandidateSpec(name="pruned-int8", prune=Pruning(ratio=0.5), **int8_fields),
    )
