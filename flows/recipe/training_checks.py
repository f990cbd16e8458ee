"""Checks that network and training suit the features and each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.tensor_layout import predicts_numbers
from bloomery.flows.recipe.architecture_checks import check_readable
from bloomery.flows.recipe.scope_checks import check_out_of_scope
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import CategoryInput, ImageInput, Input, SequenceInput, SeriesInput
from bloomery.models.networks.config import Branch, Fused, Model, Rnn, TabM, TabularEnsemble
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Explain, Training
from bloomery.models.tree_ensembles.class_shift import SHIFTED_SCORES

# The form of encoded rows by kind of input, and the forms that each kind of network reads. Kinds that are not listed
# read any form (`custom`), or are chosen among those that fit (`auto`).
_TABLE, _SEQUENCE, _IMAGE, _AUDIO, _TEXT = "table columns", "a sequence", "an image", "audio", "text"
_MIXED = "inputs of different kinds"
_FORMS = {"image": _IMAGE, "audio": _AUDIO, "text": _TEXT, "series": _SEQUENCE, "sequence": _SEQUENCE}
_READABLE_FORMS = {
    "cnn": (_IMAGE, _AUDIO),
    "lenet": (_IMAGE, _AUDIO),
    "resnet": (_IMAGE, _AUDIO),
    "mlp": (_TABLE, _SEQUENCE),
    "ft_transformer": (_TABLE,),
    "boosted_trees": (_TABLE,),
    "tabm": (_TABLE,),
    "tabular_ensemble": (_TABLE,),
    "rnn": (_SEQUENCE, _TEXT, _AUDIO, _IMAGE),
    "transformer": (_SEQUENCE, _TEXT, _AUDIO, _IMAGE),
    "gpt": (_TEXT,),
    "token_bag": (_TEXT,),
    "huggingface": (_TEXT, _IMAGE, _AUDIO),
    "pretrained": (_TEXT, _IMAGE, _AUDIO),
    "fused": (_MIXED,),
    "imported": (_TABLE, _SEQUENCE, _IMAGE, _AUDIO, _TEXT),
}
_BRANCH_KINDS = tuple(get_args(config.model_fields["kind"].annotation)[0] for config in get_args(get_args(Branch)[0]))
_SINGLE_CHANNEL_NETWORKS = ("rnn", "transformer")
# Augmentations, and the forms of rows that each applies to.
_AUGMENTATIONS = {
    "flip": (_IMAGE,),
    "shift": (_IMAGE, _AUDIO),
    "rotate": (_IMAGE,),
    "erase": (_IMAGE, _AUDIO),
    "mask": (_AUDIO,),
    "mixup": (_IMAGE, _AUDIO, _SEQUENCE, _TABLE),
    "drop_tokens": (_TEXT,),
}
# The forms of rows and the kinds of networks that each self-supervised objective suits.
_OBJECTIVES = {
    "masked_tokens": ((_TEXT,), ("transformer", "pretrained")),
    "contrastive": ((_IMAGE, _TEXT), ("cnn", "lenet", "resnet", "rnn", "transformer", "gpt", "pretrained")),
}
# Options of `training` that apply to an imported network: they affect its evaluation.
_EVALUATION_OPTIONS = ("seed", "num_threads", "slices", "explain", "baselines", "score")
# The same for boosted trees, whose other options are those of `model`.
_TREE_OPTIONS = (*_EVALUATION_OPTIONS, "class_weights", "search")


def check_network(features: Features, model: Model) -> Iterator[str]:
    """Yields problems of a network that cannot read the encoded rows."""
    first, form = features.inputs[0], _row_form(features)
    if model.kind not in _READABLE_FORMS:
        return
    if form not in _READABLE_FORMS[model.kind]:
        kinds = [kind for kind, forms in _READABLE_FORMS.items() if form in forms]
        read = f"model: a network of kind {model.kind} reads {' or '.join(_READABLE_FORMS[model.kind])}"
        problem = f"the inputs are {form}" if features.is_mixed else f"an input of kind {first.kind} is {form}"
        yield f"{read}, but {problem}; use {' or '.join(kinds)}"
    elif isinstance(model, Fused):
        yield from _check_branches(features, model)
    elif isinstance(model, Pretrained):
        yield from check_readable(first, model)
    else:
        yield from _check_channels("model", first, model)
    if isinstance(model, Rnn) and model.relative:
        yield from _check_relative(features)


def _check_channels(place: str, source: Input, model: Model) -> Iterator[str]:
    if isinstance(source, ImageInput) and model.kind in _SINGLE_CHANNEL_NETWORKS and source.shape[0] != 1:
        yield (
            f"{place}: a network of kind {model.kind} reads an image of one channel, column by column, but this one "
            f"has {source.shape[0]}; use cnn or resnet"
        )


def _check_branches(features: Features, model: Fused) -> Iterator[str]:
    """Yields problems of the branches of a fused network."""
    parts, branches = features.part_inputs, model.branches
    if branches is None:
        return
    names = ", ".join(parts)
    for name in branches:
        if name not in parts:
            yield f"model.branches: no part is named {name!r}; the parts are {names}"
    for name, numbers in parts.items():
        branch, source = branches.get(name), features.inputs[numbers[0]]
        form = _FORMS.get(source.kind, _TABLE)
        place = f"model.branches.{name}"
        if branch is None:
            yield f"{place}: missing; name a network for this part, or leave `branches` out for the default ones"
        elif form not in _READABLE_FORMS.get(branch.kind, (form,)):
            kinds = [kind for kind, forms in _READABLE_FORMS.items() if form in forms and kind in _BRANCH_KINDS]
            yield (
                f"{place}: a network of kind {branch.kind} reads {' or '.join(_READABLE_FORMS[branch.kind])}, but the "
                f"part is {form}; use {' or '.join(kinds)}"
            )
        elif isinstance(branch, Rnn) and branch.relative:
            yield f"{place}.relative: it predicts how a series goes on, which a branch does not; leave it out"
        elif isinstance(branch, Pretrained):
            yield from check_readable(source, branch, place)
        else:
            yield from _check_channels(place, source, branch)


def _check_relative(features: Features) -> Iterator[str]:
    """Yields why a network cannot predict the change from the last step of a series."""
    first = features.inputs[0]
    is_forecast = isinstance(first, SeriesInput) and first.columns[0] == features.label and first.scale == "standard"
    if not is_forecast or features.task != "regression":
        yield (
            "model.relative: it predicts how a series goes on: it needs an input of kind series with the label as its "
            "first column, `scale: standard`, and `task: regression`; leave it out"
        )


def _row_form(features: Features) -> str:
    return _MIXED if features.is_mixed else _FORMS.get(features.inputs[0].kind, _TABLE)


def check_slices(training: Training, contract: Contract) -> Iterator[str]:
    columns = ", ".join(column.name for column in contract.columns)
    for name in training.slices:
        column = contract.column(name)
        if column is None:
            yield f"training.slices: contract {contract.name} has no column {name!r}; it has {columns}"
        elif column.personal in ("drop", "encrypt"):
            yield f"training.slices: column {name!r} is not stored in plain form ({column.personal}); use `hash`"
        elif column.logical_type == "array":
            yield f"training.slices: column {name!r} is an array; slices need single values"


def check_imported_network(training: Training) -> Iterator[str]:
    """Yields training options that have no effect, because an imported network is not trained."""
    for name, field in Training.model_fields.items():
        is_set = getattr(training, name) != field.get_default(call_default_factory=True)
        if name not in _EVALUATION_OPTIONS and is_set:
            yield f"training.{name}: an imported network is already trained; leave it out"
    if training.explain is not None and training.explain.method == "integrated_gradients":
        yield "training.explain.method: an imported network has no gradients; leave the method out"


def check_boosted_trees(features: Features, training: Training) -> Iterator[str]:
    """Yields training options that have no effect, because boosted trees are not trained by gradient descent."""
    for name, field in Training.model_fields.items():
        is_set = getattr(training, name) != field.get_default(call_default_factory=True)
        if name not in _TREE_OPTIONS and is_set:
            yield (
                f"training.{name}: boosted trees are not trained by gradient descent; leave it out, and set "
                "`max_rounds`, `patience` or `learning_rate` of the section `model`"
            )
    yield from _check_quantile("boosted_trees", training)
    if training.class_weights != "none" and predicts_numbers(features.task):
        yield "training.class_weights: a regression has no classes"
    if training.explain is not None and training.explain.method == "integrated_gradients":
        yield "training.explain.method: boosted trees have no gradients; leave the method out"
    search = training.search
    if search is not None and search.epochs is not None:
        yield "training.search.epochs: boosted trees have rounds instead of epochs; leave it out"
    for path in () if search is None else search.space:
        if path.startswith("training.") and path != "training.class_weights":
            yield f"training.search.space: {path} has no effect on boosted trees; leave it out"


def _check_quantile(kind: str, training: Training) -> Iterator[str]:
    if training.score is not None and training.score.quantile is not None:
        yield f"score: the trees of {kind} predict means, not quantiles; use a tabm or an mlp"


def check_training(features: Features, model: Model, training: Training) -> Iterator[str]:
    """Yields training options that do not suit the labels, the rows or the network."""
    takes_checkpoint_as_it_is = features.task == "embedding" and isinstance(model, Pretrained)
    if training.num_epochs == 0 and not takes_checkpoint_as_it_is:
        problem = "found 0" if "epochs" in training.model_fields_set else "missing"
        yield f"training.epochs: {problem}; a network of kind {model.kind} is trained for at least one"
    if predicts_numbers(features.task):
        for name in ("class_weights", "label_smoothing"):
            if getattr(training, name) != type(training).model_fields[name].default:
                yield f"training.{name}: a regression has no classes"
    elif training.loss != "squared" and features.task == "embedding":
        yield f"training.loss: {training.loss} is for a regression; vectors have a contrastive loss: leave it out"
    elif training.loss != "squared":
        yield f"training.loss: {training.loss} is for a regression, but the labels are classes"
    if isinstance(model, TabM | TabularEnsemble):
        yield from _check_tabular_ensemble(model, training)
    yield from check_out_of_scope(features, model, training)
    form = _row_form(features)
    if training.length_bucketing and not _has_padding(features):
        yield f"training.length_bucketing: it sorts texts and padded sequences by length, but an encoded row is {form}"
    yield from _check_augmentations(features, training)
    if isinstance(model, Fused) and training.explain is not None:
        yield from _check_gradients(features, model, training.explain)
    yield from _check_stages(model, training, form)
    has_indices = any(isinstance(source, CategoryInput) and source.encoding == "index" for source in features.inputs)
    if training.augment.mixup and has_indices:
        yield "training.augment.mixup: category indices (`encoding: index`) cannot be interpolated"


def _check_gradients(features: Features, model: Fused, explain: Explain) -> Iterator[str]:
    """Yields what of mixed rows has no gradients."""
    if explain.method != "integrated_gradients":
        return
    obstacles = [f"the tokens of column {source.columns[0]!r}" for source in features.inputs if source.kind == "text"]
    if any(isinstance(source, CategoryInput) and source.encoding == "index" for source in features.inputs):
        obstacles.append("category indices")
    obstacles += [f"the imported branch {name}" for name, kind in branch_kinds(model).items() if kind == "imported"]
    if obstacles:
        yield f"training.explain.method: mixed rows have no gradients for {obstacles[0]}; leave the method out"


def branch_kinds(model: Model) -> dict[str, str]:
    branches = model.branches if isinstance(model, Fused) else None
    return {name: branch.kind for name, branch in (branches or {}).items()}


def _check_augmentations(features: Features, training: Training) -> Iterator[str]:
    form = _row_form(features)
    forms_of_row = {_FORMS.get(source.kind, _TABLE) for source in features.inputs}
    for name, forms in _AUGMENTATIONS.items():
        if not any(getattr(part.augment, name) for part in training.parts):
            continue
        if not forms_of_row & set(forms):
            yield f"training.augment.{name} applies to {' or '.join(forms)}, but an encoded row is {form}"
        elif features.is_mixed and name == "mixup":
            yield "training.augment.mixup: parts that are missing, texts and categories cannot be interpolated"
        elif {_IMAGE, _AUDIO} <= forms_of_row and not {_IMAGE, _AUDIO} <= set(forms):
            yield (
                f"training.augment.{name} applies to {forms[0]}, but a row has an image and audio, and both would "
                "change; leave it out"
            )


def _has_padding(features: Features) -> bool:
    """Whether encoded rows have padding at the end: texts, and arrays of steps with a length."""
    first = features.inputs[0]
    return first.kind == "text" or (isinstance(first, SequenceInput) and first.is_padded)


def _check_stages(model: Model, training: Training, form: str) -> Iterator[str]:
    """Yields stages, and adapters, that the network or the rows cannot have."""
    if training.stages and training.devices * training.nodes > 1:
        yield "training.stages: stages are trained in one process; leave `devices` and `nodes` out"
    if training.stages and training.search is not None:
        yield "training.stages: a search has trials without stages; search first, then add the stages"
    if training.lora is not None and training.devices * training.nodes > 1:
        yield "training.lora: adapters are trained in one process; leave `devices` and `nodes` out"
    if training.lora is not None and model.kind in ("tabm", "tabular_ensemble"):
        yield f"training.lora: the layers of a {model.kind} are ensembles of layers; leave it out"
    for number, stage in enumerate(training.stages, 1):
        if stage.objective == "task" or model.kind == "custom":
            continue
        forms, kinds = _OBJECTIVES[stage.objective]
        where = f"training.stages: stage {number} has the objective {stage.objective}"
        if form not in forms:
            yield f"{where}, which learns from {' or '.join(forms)}, but an encoded row is {form}"
        elif model.kind not in kinds:
            yield f"{where}, which suits {' and '.join(kinds)}, but the network is of kind {model.kind}"


def _check_tabular_ensemble(model: TabM | TabularEnsemble, training: Training) -> Iterator[str]:
    network = model if isinstance(model, TabM) else model.network
    if network.edges is not None:
        yield "model: `edges` are quantiles of the training rows, which the training computes; leave them out"
    if training.devices * training.nodes > 1:
        yield f"training.devices: a network of kind {model.kind} is trained in one process; leave it out"
    if isinstance(model, TabularEnsemble):
        yield from _check_quantile(model.kind, training)
        yield from _check_decisions(model, training)
    if isinstance(model, TabularEnsemble) and training.start_from is not None:
        yield "training.start_from: boosted trees have no weights to start from; leave it out"


def _check_decisions(model: TabularEnsemble, training: Training) -> Iterator[str]:
    score = None if training.score is None else training.score.name
    if model.decisions == "score" and score not in SHIFTED_SCORES:
        yield (
            f"model.decisions: score suits decisions to a score of classes, but the recipe's score is "
            f"{score or 'the default one'}; set `score` to {' or '.join(SHIFTED_SCORES)}, or leave `decisions` out"
        )
