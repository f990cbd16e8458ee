"""Why a network cannot become a candidate, before anything is trained.

The command line reads this module before any heavy import, so nothing here needs torch.
"""

from __future__ import annotations

from bloomery.models.compression.config import NOT_COMPRESSIBLE, PRUNABLE, CandidateSpec, Distillation, Pruning
from bloomery.models.networks.config import Cnn, Gpt, LeNet, Mlp, Model, ResNet, Transformer

# What attention transfer compares, by kind of network. Teacher and student must have the same.
_ATTENTION_TARGETS = {
    **dict.fromkeys(("cnn", "lenet", "resnet"), "image positions"),
    **dict.fromkeys(("transformer", "gpt", "ft_transformer"), "steps or columns"),
}


def find_compression_obstacle(kind: str, spec: CandidateSpec) -> str | None:
    """The reason why a trained network of this kind cannot become this candidate, or None if it can."""
    if kind not in NOT_COMPRESSIBLE or spec.student is not None:
        return None
    steps = ("factorize", "sparsify", "num_clusters", "quantize", "weight_only")
    step = next((name for name in steps if getattr(spec, name) is not None), None)
    return None if step is None else f"{kind} consists of trees, which have no weights for `{step}`"


def find_pruning_obstacle(model: Model, pruning: Pruning) -> str | None:
    """The reason why a network of this config cannot be pruned like this, or None if it can."""
    if model.kind in NOT_COMPRESSIBLE:
        has_options = pruning.model_dump(exclude_defaults=True).keys() != {"ratio"}
        return f"{model.kind} loses trees by a `ratio`, without further options" if has_options else None
    if model.kind not in PRUNABLE:
        return f"a network of kind {model.kind} cannot be pruned"
    transformer_only = [structure for structure in pruning.structures if structure != "units"]
    if transformer_only and not isinstance(model, Transformer | Gpt):
        return f"a {model.kind} has no {' and '.join(transformer_only)} to remove: only a transformer and a gpt have"
    if pruning.dropout is not None and "dropout" not in type(model).model_fields:
        return f"a {model.kind} has no dropout to change"
    if pruning.round_to > 1 and not isinstance(model, Cnn | LeNet | ResNet):
        return f"a {model.kind} has no channels for `round_to`"
    is_chain = isinstance(model, LeNet | Mlp) or (isinstance(model, Cnn) and max(model.convolutions_of_blocks) == 1)
    if pruning.scope == "global" and not is_chain:
        return (
            f"layers of a {model.kind} share their width in the config, so all lose the same share: use `scope: layer`"
        )
    return None


def find_distillation_obstacle(teacher: Model, student: Model, distillation: Distillation) -> str | None:
    """The reason why a network of config `teacher` cannot teach one of config `student`, or None if it can."""
    for model in (teacher, student):
        if distillation.feature_weight and model.kind not in PRUNABLE:
            return f"the features of a network of kind {model.kind} are not known: leave out `feature_weight`"
        if distillation.attention_weight and model.kind not in _ATTENTION_TARGETS:
            return f"a network of kind {model.kind} has no known attention: leave out `attention_weight`"
    if distillation.attention_weight:
        student_target, teacher_target = _ATTENTION_TARGETS[student.kind], _ATTENTION_TARGETS[teacher.kind]
        if student_target != teacher_target:
            return (
                f"a {student.kind} attends to {student_target} and a {teacher.kind} to {teacher_target}: "
                "leave out `attention_weight`"
            )
    return None
