"""What a recipe's features, network and training ask of its contract, or of each other, that is not promised."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.data_contracts.odcs.contract import Column, Contract
from bloomery.models.compression.config import PRUNABLE, Compression, find_distillation_obstacle, find_pruning_obstacle
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import (
    AudioInput,
    CategoryInput,
    ImageInput,
    Input,
    SequenceInput,
    SeriesInput,
)
from bloomery.models.networks.config import Imported, Mlp, Model
from bloomery.models.training.config import Training

_TAKEN = frozenset({"x", "y", "truth", "answer", "probabilities", "_part", "_partition", "_label"})
_TYPES = {
    "number": ("integer", "number"),
    "category": ("string", "integer", "boolean"),
    "date": ("date", "timestamp"),
    "boolean": ("boolean",),
    "text": ("string",),
    "image": ("array",),
    "audio": ("array",),
    "series": ("integer", "number"),
    "sequence": ("integer", "number"),
}
_LABELS = {"classification": ("integer", "string"), "regression": ("integer", "number")}

# What encoded rows are, by the kind of the input, and which of them a network reads. Networks that are not here were
# made elsewhere, or are searched for among those that fit.
_FLAT, _SEQUENCE, _IMAGE, _SOUND, _TEXT = "a table's columns", "a sequence", "an image", "audio", "text"
_FORMS = {"image": _IMAGE, "audio": _SOUND, "text": _TEXT, "series": _SEQUENCE, "sequence": _SEQUENCE}
_READ_BY = {
    "cnn": (_IMAGE, _SOUND),
    "lenet": (_IMAGE, _SOUND),
    "resnet": (_IMAGE, _SOUND),
    "mlp": (_FLAT, _SEQUENCE),
    "ft_transformer": (_FLAT,),
    "rnn": (_SEQUENCE, _TEXT, _SOUND, _IMAGE),
    "transformer": (_SEQUENCE, _TEXT, _SOUND, _IMAGE),
    "gpt": (_TEXT,),
    "huggingface": (_TEXT, _IMAGE, _SOUND),
}
_READ_ONE_CHANNEL = ("rnn", "transformer")
# What private training has in its own way, or not at all: each row is seen by chance, clipped and hidden in noise.
_NOT_PRIVATE = (
    *("accumulate", "clip_norm", "class_weights", "ema", "best_by", "patience"),
    *("precision", "compile", "augment"),
    *("devices", "nodes"),
)
# How rows may be changed in training, and which rows can be.
_AUGMENTED = {
    "flip": (_IMAGE,),
    "shift": (_IMAGE, _SOUND),
    "rotate": (_IMAGE,),
    "erase": (_IMAGE, _SOUND),
    "mask": (_SOUND,),
    "mixup": (_IMAGE, _SOUND, _SEQUENCE, _FLAT),
    "drop_tokens": (_TEXT,),
}
# What `training` may say of a network that comes trained: how it is judged.
_OF_JUDGING = ("seed", "num_threads", "slices", "explain")
_NO_STUDENTS = ("auto", "imported")


def misfits(
    features: Features,
    model: Model,
    contract: Contract,
    training: Training | None = None,
    compression: Compression | None = None,
) -> Iterator[str]:
    """A sentence for each, none if all fits."""
    known = ", ".join(column.name for column in contract.columns)
    for role, name in (("key", features.key), ("label", features.label)):
        if contract.column(name) is None:
            yield f"features.{role}: contract {contract.name} has no column {name!r}; it has {known}"
    yield from _of_key(contract.column(features.key), contract.table.key)
    yield from _of_label(features, contract.column(features.label))
    for name in dict.fromkeys((features.key, features.label, *features.split.columns)):
        if name in _TAKEN:
            yield f"features: prepared rows have a column {name!r} of their own; rename the data's (data.rename)"
    for source in features.inputs:
        for name in source.columns:
            column = contract.column(name)
            if column is None:
                yield f"features.inputs: contract {contract.name} has no column {name!r}; it has {known}"
            else:
                yield from (f"features.inputs: {problem}" for problem in _of_column(source, column))
    if features.series is not None:
        yield from (f"features.inputs: {problem}" for problem in _of_series(features.series, contract))
        if features.split.by == "key":
            yield (
                "features.split: by key, rows that follow each other in a series go to different parts; "
                "split by time, or by group or given"
            )
    yield from _of_split(features, contract)
    yield from _of_network(features, model)
    if training is not None:
        yield from _of_slices(training, contract)
        if isinstance(model, Imported):
            yield from _of_imported(training)
        else:
            yield from _of_training(features, model, training)
            yield from _of_privacy(model, training, compression or Compression())
    if compression is not None and compression.distill is None and features.unlabelled == "teach":
        yield "compression.distill: without it rows without a label teach nobody; leave out `features.unlabelled`"
    if compression is not None:
        yield from _of_compression(features, model, compression)


def _of_key(key: Column | None, of_table: tuple[str, ...]) -> Iterator[str]:
    if key is not None and not (of_table == (key.name,) or (key.unique and key.is_required)):
        yield f"features.key: column {key.name!r} is not a primaryKey in the contract, so rows could not be told apart"
    if key is not None and key.personal in ("drop", "encrypt"):
        yield f"features.key: column {key.name!r} is not kept in clear ({key.personal}); `hash` still tells rows apart"


def _of_label(features: Features, label: Column | None) -> Iterator[str]:
    if label is None:
        return
    if label.personal is not None:
        yield f"features.label: column {label.name!r} is marked personal in the contract, so nothing may learn it"
    if not label.is_required and not features.is_forecast and features.unlabelled == "refuse":
        hint = "; `unlabelled: teach` has a use for those" if features.task == "classification" else ""
        told = f"column {label.name!r} is not required in the contract, so a row could have no label"
        yield f"features.label: {told}{hint}"
    if label.is_required and features.unlabelled == "teach":
        yield f"features.unlabelled: column {label.name!r} is required in the contract, so every row has a label"
    if label.logical_type not in _LABELS[features.task]:
        what = "classes are integers or strings" if features.task == "classification" else "figures are numbers"
        other = "; with `task: regression` it can be learnt" if label.logical_type == "number" else ""
        yield f"features.label: {what}, and column {label.name!r} is {label.logical_type}{other}"


def _of_split(features: Features, contract: Contract) -> Iterator[str]:
    """What the split asks of the columns that it reads."""
    known = ", ".join(column.name for column in contract.columns)
    for name in features.split.columns:
        column = contract.column(name)
        if column is None:
            yield f"features.split: contract {contract.name} has no column {name!r}; it has {known}"
        elif column.personal in ("drop", "encrypt"):
            yield f"features.split: column {name!r} is not kept in clear ({column.personal}); `hash` keeps groups apart"
        elif not column.is_required:
            yield f"features.split: column {name!r} is not required in the contract, so a row could belong to no part"
        elif column.logical_type == "array":
            yield f"features.split: column {name!r} is an array; a split reads single values"
        elif name == features.split.column and features.split.val_from is not None:
            fitting = ("integer",) if isinstance(features.split.val_from, int) else ("date", "timestamp")
            if column.logical_type not in fitting:
                yield f"features.split.val_from is no value of column {name!r}, which is {column.logical_type}"
    given = contract.column(features.split.column or "")
    if features.split.by == "given" and given is not None and given.logical_type != "string":
        yield (
            f"features.split: column {given.name!r} is {given.logical_type}; "
            "parts are given as the texts train, val and test"
        )


def _of_column(source: Input, column: Column) -> Iterator[str]:
    """What one input asks of one of its columns."""
    if column.personal is not None:
        yield f"column {column.name!r} is marked personal in the contract, so no network may read it"
    is_array = isinstance(source, ImageInput | AudioInput) or (isinstance(source, SequenceInput) and source.is_padded)
    types = ("array",) if is_array else _TYPES[source.kind]
    if column.logical_type not in types:
        fitting = " or ".join(types)
        yield f"an input of kind {source.kind} reads {fitting}, and column {column.name!r} is {column.logical_type}"
    elif isinstance(source, SeriesInput):
        yield from _of_windows(source, column)
    elif isinstance(source, ImageInput | AudioInput | SequenceInput):
        yield from _of_arrays(source, column)
    elif isinstance(source, CategoryInput):
        if column.custom("unknownCategory") == "refuse" and source.unknown == "other":
            yield (f"the contract refuses unknown categories in column {column.name!r}; say `unknown: refuse` here too")
    elif source.missing == "refuse" and not column.is_required:
        yield (
            f"column {column.name!r} is not required in the contract, so a row could lack it; "
            "say with `missing` what stands for it then"
        )


def _of_arrays(source: ImageInput | AudioInput | SequenceInput, column: Column) -> Iterator[str]:
    """What an input with a shape asks of its array, or a sequence of one of its wide columns."""
    if column.logical_type == "array":
        if column.items is None or column.items.logical_type not in ("integer", "number"):
            yield f"column {column.name!r} is no array of numbers, so it is no {source.kind}"
            return
        if not column.items.required:
            yield f"column {column.name!r} may have elements that are null, of which no {source.kind} can be made"
        if isinstance(source, ImageInput):
            yield from _of_image(source, column)
    if not column.is_required:
        yield f"column {column.name!r} is not required in the contract, so a row could lack it"


def _of_windows(source: SeriesInput, column: Column) -> Iterator[str]:
    """What a series asks of a column whose values stand in windows, which are what the endpoint is sent."""
    if not column.is_required and source.missing == "refuse":
        yield (
            f"column {column.name!r} is not required in the contract, so a window could lack a value; "
            "say with `missing` what stands for it then"
        )
    for rule, place in column.placed_rules(is_key=False):
        if place[0] == "quality" and rule.is_about_rows and rule.severity == "error" and rule.kind != "required":
            yield (
                f"column {column.name!r} {rule.sentence}, as its quality says, which no endpoint asks of windows; "
                "state limits in logicalTypeOptions, or make the rule a warning"
            )


def _of_series(source: SeriesInput, contract: Contract) -> Iterator[str]:
    """What a series asks of the columns that order its rows and tell it from others."""
    roles: list[tuple[str, str, tuple[str, ...]]] = [("time", source.time, ("integer", "date", "timestamp"))]
    if source.group is not None:
        roles.append(("group", source.group, ("string", "integer")))
    for role, name, types in roles:
        column = contract.column(name)
        if column is None:
            yield f"contract {contract.name} has no column {name!r}, the series' {role}"
            continue
        if column.logical_type not in types:
            yield f"the {role} of a series is {' or '.join(types)}, and column {name!r} is {column.logical_type}"
        if not column.is_required:
            yield f"column {name!r} is not required in the contract, so a row's {role} in the series could be unknown"
        if column.personal is not None and (role, column.personal) != ("group", "hash"):
            yield f"column {name!r} is personal, to {column.personal}, so it cannot be the series' {role}"
        is_whole = source.spacing is None or float(source.spacing).is_integer()
        if role == "time" and column.logical_type in ("integer", "date") and not is_whole:
            yield f"column {name!r} is {column.logical_type}, so its spacing is a whole number, not {source.spacing}"


def _of_image(source: ImageInput, column: Column) -> Iterator[str]:
    channels, height, width = source.shape
    size = channels * height * width
    options = column.logical_type_options
    if (options.min_items, options.max_items) != (size, size):
        yield (
            f"an image of shape {list(source.shape)} has {size} values, but the contract lets "
            f"column {column.name!r} have {options.min_items} to {options.max_items}"
        )


def _of_network(features: Features, model: Model) -> Iterator[str]:
    first, form = features.inputs[0], _form(features)
    if model.kind not in _READ_BY:
        return
    if form not in _READ_BY[model.kind]:
        fitting = [kind for kind, forms in _READ_BY.items() if form in forms]
        yield (
            f"model: a network of kind {model.kind} reads {' or '.join(_READ_BY[model.kind])}, and an input of kind "
            f"{first.kind} is {form}; use {' or '.join(fitting)}"
        )
    elif isinstance(first, ImageInput) and model.kind in _READ_ONE_CHANNEL and first.shape[0] != 1:
        yield (
            f"model: a network of kind {model.kind} reads an image of one channel, column by column, and this one has "
            f"{first.shape[0]}; use cnn or resnet"
        )


def _form(features: Features) -> str:
    return _FORMS.get(features.inputs[0].kind, _FLAT)


def _of_slices(training: Training, contract: Contract) -> Iterator[str]:
    known = ", ".join(column.name for column in contract.columns)
    for name in training.slices:
        column = contract.column(name)
        if column is None:
            yield f"training.slices: contract {contract.name} has no column {name!r}; it has {known}"
        elif column.personal in ("drop", "encrypt"):
            yield f"training.slices: column {name!r} is not kept in clear ({column.personal}); say `hash`"
        elif column.logical_type == "array":
            yield f"training.slices: column {name!r} is an array; figures are told apart by single values"


def _of_imported(training: Training) -> Iterator[str]:
    """What is asked of a training that does not take place."""
    for name, field in Training.model_fields.items():
        if name not in _OF_JUDGING and getattr(training, name) != field.get_default(call_default_factory=True):
            yield f"training.{name}: an imported network comes trained, and is not trained further; leave it out"
    if training.explain is not None and training.explain.method == "integrated_gradients":
        yield "training.explain.method: an imported network has no gradients; leave the method out"


def _of_compression(features: Features, model: Model, compression: Compression) -> Iterator[str]:
    if compression.explore is not None and model.kind == "imported":
        yield (
            "compression.explore: an imported network is taken as it is, so nothing can leave it; name candidates with "
            "a `student` that takes its place"
        )
    yield from _of_lessons(model, compression)
    candidates = compression.candidates or ()
    if compression.also and model.kind == "imported" and not any(one.student and one.is_float for one in candidates):
        yield (
            "compression.also: an imported network is none of PyTorch's, so it can be written in no other form; leave "
            "`also` out, or name a candidate in float with a `student` that takes its place"
        )
    for candidate in candidates:
        pruned = model if candidate.student is None else candidate.student.model
        why = (
            None if candidate.prune is None or model.kind == "auto" else find_pruning_obstacle(pruned, candidate.prune)
        )
        if why is not None:
            yield f"compression.candidates: {candidate.name} is to be pruned, and {why}; change or leave out `prune`"
        if candidate.factorise is not None and pruned.kind == "imported":
            yield (
                f"compression.candidates: {candidate.name} is to be factorised, and an imported network is taken as it "
                "is; leave `factorize` out, or let a `student` take its place"
            )
        if candidate.student is not None and candidate.student.model.kind in _NO_STUDENTS:
            yield (
                f"compression.candidates: {candidate.name} has a student of kind {candidate.student.model.kind}; name "
                "a network that is trained anew"
            )
        elif candidate.student is not None:
            where = f"compression.candidates: {candidate.name}'s student"
            yield from (f"{where}: {problem}" for problem in _of_network(features, candidate.student.model))


def _of_lessons(model: Model, compression: Compression) -> Iterator[str]:
    """What a teacher and its students are to have in common."""
    if compression.distill is None or model.kind == "auto":
        return
    students = {one.name: one.student for one in compression.candidates or () if one.is_smaller}
    if compression.explore is not None or (compression.candidates is None and model.kind in PRUNABLE):
        students["what is pruned"] = None
    for name, student in students.items():
        why = find_distillation_obstacle(model, model if student is None else student.model, compression.distill)
        if why is not None:
            yield f"compression.distill: {name} is to learn from the network as trained, and {why}"


def _of_training(features: Features, model: Model, training: Training) -> Iterator[str]:
    """What training asks of the labels, the rows and the network."""
    if training.epochs == 0:
        found = "found 0" if "epochs" in training.model_fields_set else "missing"
        yield f"training.epochs: {found}; a network of kind {model.kind} is trained for at least one"
    if features.task == "regression":
        for name in ("class_weights", "label_smoothing"):
            if getattr(training, name) != type(training).model_fields[name].default:
                yield f"training.{name}: a regression has no classes"
    elif training.loss != "squared":
        yield f"training.loss: {training.loss} is for a regression, and the labels are classes"
    form = _form(features)
    for name, forms in _AUGMENTED.items():
        if getattr(training.augment, name) and form not in forms:
            yield f"training.augment.{name} changes {' or '.join(forms)}, and an encoded row is {form}"
    is_coded = any(isinstance(source, CategoryInput) and source.encoding == "index" for source in features.inputs)
    if training.augment.mixup and is_coded:
        yield "training.augment.mixup: between the numbers of two categories (`encoding: index`) there is none"


def _of_privacy(model: Model, training: Training, compression: Compression) -> Iterator[str]:
    """What would break the promise of private training, or has no part in it."""
    if training.privacy is None:
        return
    if model.kind == "auto":
        yield "training.privacy: `model: auto` tries networks that normalise over the rows of a batch; name a network"
    has_batch_norm = model.kind in ("cnn", "resnet") or (isinstance(model, Mlp) and model.norm == "batch")
    if has_batch_norm:
        other = "say `norm: none`" if isinstance(model, Mlp) else "use another kind of network"
        yield (
            f"training.privacy: a {model.kind} normalises over the rows of a batch, so no row's gradient is its own; "
            f"{other}"
        )
    if isinstance(model, Mlp) and model.periodic is not None:
        yield "training.privacy: the frequencies of `periodic` tell no gradient of each row; leave it out"
    for name in _NOT_PRIVATE:
        if getattr(training, name) != type(training).model_fields[name].default:
            yield f"training.{name} has no part in private training; leave it out"
    if training.search is not None:
        yield "training.search: every trial would spend of the same rows' privacy; leave it out of private training"
    if training.start_from is not None and training.start_from.discount != 1:
        yield "training.start_from.discount has no part in private training; leave it out"
    for candidate in compression.candidates or ():
        if candidate.is_smaller:
            yield (
                f"compression.candidates: {candidate.name} is to be trained on the same rows without noise, "
                "so that epsilon would not hold; leave it out"
            )
