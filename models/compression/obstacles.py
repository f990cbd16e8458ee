"""Why a network cannot become a candidate, before anything is trained.

The command line reads this module before any heavy import, so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable

from bloomery.models.compression.config import NOT_COMPRESSIBLE, PRUNABLE, CandidateSpec, Distillation, Pruning
from bloomery.models.networks.body_families import CONVOLUTIONAL_FAMILIES, FAMILIES, STAGED_FAMILIES
from bloomery.models.networks.config import Cnn, Fused, Gpt, LeNet, Mlp, Model, ResNet, Transformer
from bloomery.models.networks.pretrained_config import Pretrained

# What attention transfer compares, by kind of network. Teacher and student must have the same.
_ATTENTION_TARGETS = {
    **dict.fromkeys(("cnn", "lenet", "resnet"), "image positions"),
    **dict.fromkeys(("transformer", "gpt", "ft_transformer", "pretrained"), "steps or columns"),
}


def find_compression_obstacle(kind: str, spec: CandidateSpec) -> str | None:
    """The reason why a trained network of this kind cannot become this candidate, or None if it can."""
    if kind not in ("pretrained", "fused", "auto"):
        if spec.trim_vocabulary is not None:
            return f"the tokens of a {kind} are not those of a pretrained checkpoint: leave `trim_vocabulary` out"
        if spec.student is not None and spec.student.layers is not None:
            return f"a student takes `layers` of a pretrained network, but this one is a {kind}: set its `model`"
    if kind not in NOT_COMPRESSIBLE or spec.student is not None:
        return None
    steps = ("factorize", "sparsify", "num_clusters", "quantize", "weight_only", "compute")
    step = next((name for name in steps if getattr(spec, name) is not None), None)
    return None if step is None else f"{kind} consists of trees, which have no weights for `{step}`"


def find_pruning_obstacle(model: Model, pruning: Pruning) -> str | None:
    """The reason why a network of this config cannot be pruned like this, or None if it can."""
    if model.kind in NOT_COMPRESSIBLE:
        has_options = pruning.model_dump(exclude_defaults=True).keys() != {"ratio"}
        return f"{model.kind} loses trees by a `ratio`, without further options" if has_options else None
    if isinstance(model, Pretrained):
        return _find_pretrained_obstacle(model, pruning)
    if isinstance(model, Fused):
        return _find_branch_obstacle(model, lambda branch: find_pruning_obstacle(branch, pruning))
    if model.kind not in PRUNABLE:
        return f"a network of kind {model.kind} cannot be pruned"
    transformer_only = [structure for structure in pruning.structures if structure != "units"]
    if transformer_only and not isinstance(model, Transformer | Gpt):
        return f"a {model.kind} has no {' and '.join(transformer_only)} to remove: transformer, gpt and pretrained have"
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


def _find_branch_obstacle(model: Fused, find_obstacle: Callable[[Model], str | None]) -> str | None:
    """Each branch is changed by its own kind; one that cannot be stays as it is, but one can be at least."""
    if model.branches is None:
        return None  # the default branches depend on the rows
    obstacles = {name: find_obstacle(branch) for name, branch in model.branches.items()}
    if None in obstacles.values():
        return None
    return "no branch can be: " + "; ".join(f"{name}: {obstacle}" for name, obstacle in obstacles.items())


def _find_pretrained_obstacle(model: Pretrained, pruning: Pruning) -> str | None:
    model_type = _model_type(model)
    if model_type in STAGED_FAMILIES:
        if pruning.structures != ("units",):
            return f"the stages of {model_type} differ in width, so only `units` can be removed, those inside blocks"
    else:
        obstacle = _find_unknown_family(model)
        if obstacle is not None:
            return obstacle
        if "heads" in pruning.structures and model_type is not None and FAMILIES[model_type].has_shared_bias:
            return f"the layers of {model_type} share a bias for each head: leave `heads` out of `structures`"
    if pruning.dropout is not None:
        return "the layers of a pretrained network keep the dropout of their checkpoint: leave `dropout` out"
    return "the units of a pretrained network are not rounded: leave `round_to` out" if pruning.round_to > 1 else None


def find_layer_obstacle(model: Model, layers: int | tuple[int, ...]) -> str | None:
    """The reason why a student cannot take these layers of a network of config `model`, or None if it can.

    It takes those of every pretrained branch of a fused network that has them.
    """
    if isinstance(model, Fused):
        return _find_default_branches(model) or _find_branch_obstacle(
            model, lambda branch: find_layer_obstacle(branch, layers)
        )
    if not isinstance(model, Pretrained):
        return f"a {model.kind} is not a pretrained network"
    obstacle = _find_unknown_family(model)
    if obstacle is not None or model.config is None:
        return obstacle
    num_layers = count_layers(model)
    last = layers - 1 if isinstance(layers, int) else layers[-1]
    if num_layers is not None and last >= num_layers:
        return f"the network has {num_layers} layers, numbered from 0, but `layers` is {layers}"
    return None


def count_layers(model: Pretrained | Fused) -> int | None:
    """The number of layers, as far as the config says it; of a fused network that of its deepest pretrained branch."""
    if isinstance(model, Fused):
        branches = [branch for branch in (model.branches or {}).values() if isinstance(branch, Pretrained)]
        return max(filter(None, map(count_layers, branches)), default=None)
    if model.shape is not None:
        return len(model.shape.heads)
    config = model.config or {}
    num_layers = config.get("num_hidden_layers", config.get("n_layers"))
    return num_layers if isinstance(num_layers, int) else None


def find_vocabulary_obstacle(model: Model) -> str | None:
    """The reason why the vocabulary of a network of config `model` cannot be trimmed, or None if it can."""
    if isinstance(model, Fused):
        return _find_default_branches(model) or _find_branch_obstacle(model, find_vocabulary_obstacle)
    if not isinstance(model, Pretrained):
        return f"a {model.kind} is not a pretrained network"
    family = FAMILIES.get(str(_model_type(model)))
    has_tokens = model.config is None or "vocab_size" in model.config
    if not has_tokens or (family is not None and not family.reads_tokens):
        return "the network has no vocabulary: leave `trim_vocabulary` out"
    return _find_unknown_family(model)


def _find_default_branches(model: Fused) -> str | None:
    """The reason why unnamed branches have no layers or tokens of a checkpoint, or None if the branches are named."""
    if model.branches is not None:
        return None
    return "the default branches of a fused network are not pretrained: name `branches`"


def find_factorization_obstacle(model: Model) -> str | None:
    """The reason why no matrix of a network of config `model` can have a lower rank, or None if some can."""
    if not isinstance(model, Pretrained) or _model_type(model) not in CONVOLUTIONAL_FAMILIES:
        return None
    return (
        f"{_model_type(model)} has convolutions, and only linear and embedding layers have a lower rank: leave "
        "`factorize` out"
    )


def _find_unknown_family(model: Pretrained) -> str | None:
    """The reason why the layers of the network cannot be taken apart, or None if they can."""
    model_type = _model_type(model)
    if model_type in STAGED_FAMILIES:
        return f"the stages of {model_type} differ in width, so its layers are no list of equal ones"
    if model.config is not None and model.config.get("use_swiglu_ffn"):
        return f"the feed-forward layers of this {model_type} have gates, which are not known"
    if model_type is None or model_type in FAMILIES:
        return None
    return f"the layers of {model_type} are not known, only those of {', '.join((*FAMILIES, *STAGED_FAMILIES))}"


def _model_type(model: Pretrained) -> str | None:
    """The family of a checkpoint; None before it is resolved."""
    return None if model.config is None else str(model.config.get("model_type"))


def find_distillation_obstacle(teacher: Model, student: Model, distillation: Distillation) -> str | None:
    """The reason why a network of config `teacher` cannot teach one of config `student`, or None if it can."""
    for model in (teacher, student):
        if distillation.feature_weight and isinstance(model, Fused):
            return "a fused network has features in each branch: leave out `feature_weight`"
        if distillation.feature_weight and model.kind not in PRUNABLE:
            return f"the features of a network of kind {model.kind} are not known: leave out `feature_weight`"
        if distillation.attention_weight and model.kind not in _ATTENTION_TARGETS:
            return f"a network of kind {model.kind} has no known attention: leave out `attention_weight`"
        if distillation.attention_weight and isinstance(model, Pretrained):
            obstacle = _find_unknown_family(model)
            if obstacle is not None:
                return f"{obstacle}: leave out `attention_weight`"
    if distillation.attention_weight:
        student_target, teacher_target = _ATTENTION_TARGETS[student.kind], _ATTENTION_TARGETS[teacher.kind]
        if student_target != teacher_target:
            return (
                f"a {student.kind} attends to {student_target} and a {teacher.kind} to {teacher_target}: "
                "leave out `attention_weight`"
            )
    return None
