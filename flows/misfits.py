"""What a recipe's features and network ask of its contract, or of each other, that is not promised."""

from __future__ import annotations

from collections.abc import Iterator

from data_contracts.contract import Column, Contract
from models.config import Features, Model
from models.features.inputs import AudioInput, CategoryInput, FlatInput, ImageInput, Input, SeriesInput, TextInput

_TAKEN = frozenset({"x", "y", "truth", "answer", "probabilities", "_part", "_partition"})
_TYPES = {
    "number": ("integer", "number"),
    "category": ("string", "integer", "boolean"),
    "date": ("date", "timestamp"),
    "boolean": ("boolean",),
    "text": ("string",),
    "image": ("array",),
    "audio": ("array",),
    "series": ("integer", "number"),
}


def misfits(features: Features, model: Model, contract: Contract) -> Iterator[str]:
    """A sentence for each, none if all fits."""
    known = ", ".join(column.name for column in contract.columns)
    for role, name in (("key", features.key), ("label", features.label)):
        if contract.column(name) is None:
            yield f"features.{role}: contract {contract.name} has no column {name!r}; it has {known}"
    yield from _key_and_label(contract.column(features.key), contract.column(features.label), contract.table.key)
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


def _key_and_label(key: Column | None, label: Column | None, of_table: tuple[str, ...]) -> Iterator[str]:
    if key is not None and not (of_table == (key.name,) or (key.unique and key.is_required)):
        yield f"features.key: column {key.name!r} is not a primaryKey in the contract, so rows could not be told apart"
    if key is not None and key.personal in ("drop", "encrypt"):
        yield f"features.key: column {key.name!r} is not kept in clear ({key.personal}); `hash` still tells rows apart"
    if label is not None and label.personal is not None:
        yield f"features.label: column {label.name!r} is marked personal in the contract, so nothing may learn it"
    if label is not None and not label.is_required:
        yield f"features.label: column {label.name!r} is not required in the contract, so a row could have no label"
    if label is not None and label.logical_type not in ("integer", "string"):
        yield f"features.label: classes are integers or strings, and column {label.name!r} is {label.logical_type}"


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
    if column.logical_type not in _TYPES[source.kind]:
        fitting = " or ".join(_TYPES[source.kind])
        yield f"an input of kind {source.kind} reads {fitting}, and column {column.name!r} is {column.logical_type}"
        return
    if isinstance(source, ImageInput | AudioInput):
        if column.items is None or column.items.logical_type not in ("integer", "number"):
            yield f"column {column.name!r} is no array of numbers, so it is no {source.kind}"
            return
        if isinstance(source, ImageInput):
            yield from _of_image(source, column)
        if not column.is_required:
            yield f"column {column.name!r} is not required in the contract, so a row could lack it"
    elif isinstance(source, SeriesInput):
        yield from _of_windows(column)
    elif not isinstance(source, CategoryInput) and source.missing == "refuse" and not column.is_required:
        yield (
            f"column {column.name!r} is not required in the contract, so a row could lack it; "
            "say with `missing` what stands for it then"
        )
    if isinstance(source, CategoryInput) and column.custom("unknownCategory") == "refuse" and source.unknown == "other":
        yield f"the contract refuses unknown categories in column {column.name!r}; say `unknown: refuse` here too"


def _of_windows(column: Column) -> Iterator[str]:
    """What a series asks of a column whose values stand in windows, which are what the endpoint is sent."""
    if not column.is_required:
        yield f"column {column.name!r} is not required in the contract, so a window could lack a value"
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
    first = features.inputs[0]
    if isinstance(first, TextInput):
        yield f"model: no network of kind {model.kind} reads text"
    elif model.kind == "cnn" and isinstance(first, FlatInput | SeriesInput):
        what = "windows of numbers" if isinstance(first, SeriesInput) else "a flat vector"
        yield f"model: a cnn reads an image or audio, and an input of kind {first.kind} gives {what}; use an mlp"
    elif model.kind == "mlp" and not isinstance(first, FlatInput | SeriesInput):
        yield f"model: an mlp reads a flat vector, and an input of kind {first.kind} has a shape; use a cnn"
