"""The candidates of a recipe that names none.

The command line reads this module before any heavy import, so nothing here needs torch.
"""

from __future__ import annotations

from typing import Any

from bloomery.models.compression.config import (
    NOT_COMPRESSIBLE,
    PRUNABLE,
    CandidateSpec,
    Pruning,
    QuantizationMode,
    Student,
)
from bloomery.models.compression.obstacles import (
    count_layers,
    find_layer_obstacle,
    find_pruning_obstacle,
    find_vocabulary_obstacle,
)
from bloomery.models.networks.body_families import CONVOLUTIONAL_FAMILIES
from bloomery.models.networks.config import Fused
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Loop

# Of pretrained networks. Training is short, and as careful as that of the network itself.
_KEPT_TOKENS = 1.0  # share of the training rows' tokens
_PRUNED_RATIO, _STUDENT_RATIO = 0.25, 0.5  # of the feed-forward units
_STUDENT_LAYERS = 3
_RECOVERY = Loop(epochs=2, batch_size=64, learning_rate=2e-4, best_by="score")
_FIRST_TRAINING = Loop(epochs=1, batch_size=64, learning_rate=5e-4, best_by="score")
_STUDENT_TRAINING = Loop(epochs=4, batch_size=64, learning_rate=8e-4, best_by="score")
STATIC_KINDS = ("cnn", "lenet", "resnet", "mlp")  # of networks that are quantized with static ranges
_TREE_RATIOS = (0.25, 0.5, 0.75, 0.9)  # of trees that the default candidates lose


def default_candidates(
    kind: str,
    mode: QuantizationMode | None = None,
    *,
    weight_only: bool = False,
    amx: bool = False,
    pretrained: Pretrained | Fused | None = None,
) -> tuple[CandidateSpec, ...]:
    """The candidates for a network of `kind` if the recipe names none.

    Args:
        mode: of quantization; default: by the kind of network.
        weight_only: stores weights in 8 bits, for networks without 8-bit kernels (GRU and Elman layers).
        amx: the processor has AMX (cpu_features.py).
        pretrained: the network of kind pretrained, or a fused one with such a branch, whose layers and vocabulary
            decide what is possible.
    """
    if kind in NOT_COMPRESSIBLE:
        named = {f"pruned-{round(100 * ratio)}": Pruning(ratio=ratio) for ratio in _TREE_RATIOS}
        return (CandidateSpec(name="fp32"), *(CandidateSpec(name=name, prune=named[name]) for name in named))
    if pretrained is not None:
        return _pretrained_candidates(pretrained)
    # Recurrent cells and attention have no 8-bit kernels for static ranges.
    mode = mode or ("static" if kind in STATIC_KINDS else "dynamic")
    quantized = {"quantize": mode, "amx": amx and mode == "static"}
    int8_fields: dict[str, Any] = {"weight_only": "int8"} if weight_only else quantized
    unpruned = (CandidateSpec(name="fp32"), CandidateSpec(name="int8", **int8_fields))
    if kind not in PRUNABLE or kind == "pretrained":
        return unpruned
    return (
        *unpruned,
        CandidateSpec(name="pruned", prune=Pruning(ratio=0.5)),
        CandidateSpec(name="pruned-int8", prune=Pruning(ratio=0.5), **int8_fields),
    )


def _pretrained_candidates(model: Pretrained | Fused) -> tuple[CandidateSpec, ...]:
    """8 bits without training, then with fewer units, then a student with three layers; all of texts with fewer tokens.

    Candidates that a network of this family does not support are left out.
    """
    model_type = (model.config or {}).get("model_type") if isinstance(model, Pretrained) else None
    is_convolutional = model_type in CONVOLUTIONAL_FAMILIES
    mode: QuantizationMode = "static" if is_convolutional else "dynamic"
    candidates = [CandidateSpec(name="fp32"), CandidateSpec(name="int8", quantize=mode)]
    trimmed: dict[str, Any] = {}
    if find_vocabulary_obstacle(model) is None:
        trimmed = {"trim_vocabulary": _KEPT_TOKENS}
        candidates.append(CandidateSpec(name="trimmed-int8", **trimmed, quantize="dynamic"))
    pruning = Pruning(ratio=_PRUNED_RATIO, importance="taylor", training=_RECOVERY)
    if find_pruning_obstacle(model, pruning) is None:
        candidates.append(CandidateSpec(name="pruned-int8", **trimmed, prune=pruning, quantize=mode))
    num_layers = count_layers(model)
    if num_layers is not None and num_layers > _STUDENT_LAYERS and find_layer_obstacle(model, _STUDENT_LAYERS) is None:
        student = Student(layers=_STUDENT_LAYERS, training=_FIRST_TRAINING)
        half = Pruning(ratio=_STUDENT_RATIO, importance="taylor", training=_STUDENT_TRAINING)
        candidates.append(CandidateSpec(name="student-int8", **trimmed, student=student, prune=half, quantize=mode))
    return tuple(candidates)
