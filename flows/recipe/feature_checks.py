"""Checks that the columns of a contract suit the inputs that read them."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.data_contracts.odcs.contract import Column, Contract
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import (
    AudioInput,
    CategoryInput,
    ImageInput,
    Input,
    SequenceInput,
    SeriesInput,
)

_COLUMN_TYPES = {
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


def check_column(source: Input, column: Column) -> Iterator[str]:
    """Yields what keeps an input from reading one of its columns."""
    is_array = isinstance(source, ImageInput | AudioInput) or (isinstance(source, SequenceInput) and source.is_padded)
    types = ("array",) if is_array else _COLUMN_TYPES[source.kind]
    if column.logical_type not in types:
        yield (
            f"an input of kind {source.kind} reads {' or '.join(types)}, but column {column.name!r} is "
            f"{column.logical_type}"
        )
    elif isinstance(source, SeriesInput):
        yield from _check_series_column(source, column)
    elif isinstance(source, ImageInput | AudioInput | SequenceInput):
        yield from _check_array_column(source, column)
    elif isinstance(source, CategoryInput):
        if column.custom_property("unknownCategory") == "refuse" and source.unknown == "other":
            yield f"the contract refuses unknown categories in column {column.name!r}; set `unknown: refuse` here too"
    elif source.missing == "refuse" and not column.is_required:
        yield (
            f"column {column.name!r} is not required in the contract, so values may be missing; "
            "set `missing` to what replaces them"
        )


def check_words(column: Column) -> Iterator[str]:
    """Yields what keeps the input of a tagging task from reading the words of a column."""
    if column.items is None or column.items.logical_type != "string":
        kind = column.logical_type if column.items is None else f"an array of {column.items.logical_type}"
        yield (
            f"`task: tagging` reads the words of a sentence, an array of strings, but column {column.name!r} is "
            f"{kind}; `data.lists` with `repeats: true` makes one of a text with blanks"
        )
        return
    if not column.is_required:
        yield f"column {column.name!r} is not required in the contract, so sentences may be missing; require it"
    if not column.items.required:
        yield f"column {column.name!r} may have null elements, which are no words; set `required` of its items"


def check_sample_rates(features: Features, data: DataSource) -> Iterator[str]:
    """Yields the inputs that expect another sample rate than recordings are read at, which would shift frequencies."""
    for source in features.inputs:
        if (
            isinstance(source, AudioInput)
            and data.kind == "audio"
            and data.sample_rate not in (None, source.sample_rate)
        ):
            yield (
                f"features.inputs: column {source.column!r} has {source.sample_rate} samples per second, but "
                f"data.sample_rate is {data.sample_rate}"
            )


def check_series(source: SeriesInput, contract: Contract) -> Iterator[str]:
    """Yields problems of the columns that order the rows of a series and group them."""
    roles: list[tuple[str, str, tuple[str, ...]]] = [("time", source.time, ("integer", "date", "timestamp"))]
    roles += [("group", group, ("string", "integer")) for group in source.groups]
    for role, name, types in roles:
        column = contract.column(name)
        if column is None:
            yield f"contract {contract.name} has no column {name!r}, the {role} of the series"
            continue
        if column.logical_type not in types:
            yield f"the {role} of a series is {' or '.join(types)}, but column {name!r} is {column.logical_type}"
        if not column.is_required:
            yield f"column {name!r} is not required in the contract, so the {role} of a row could be unknown"
        if column.personal is not None and (role, column.personal) != ("group", "hash"):
            yield f"column {name!r} is personal ({column.personal}), so it cannot be the {role} of the series"
        is_integer = source.spacing is None or float(source.spacing).is_integer()
        if role == "time" and column.logical_type in ("integer", "date") and not is_integer:
            yield f"column {name!r} is {column.logical_type}, so its spacing is an integer, not {source.spacing}"


def _check_array_column(source: ImageInput | AudioInput | SequenceInput, column: Column) -> Iterator[str]:
    """Yields problems of an array column, or of a column of a sequence in wide form."""
    if column.logical_type == "array":
        if column.items is None or column.items.logical_type not in ("integer", "number"):
            yield f"column {column.name!r} is not an array of numbers, which an input of kind {source.kind} needs"
            return
        if not column.items.required:
            yield f"column {column.name!r} may have null elements, which an input of kind {source.kind} cannot read"
        if isinstance(source, ImageInput):
            yield from _check_image_size(source, column)
    if not column.is_required and source.missing == "refuse":
        remedy = "require it, or set `missing: absent` beside other inputs" if column.logical_type == "array" else ""
        yield (
            f"column {column.name!r} is not required in the contract, so values may be missing"
            + (f"; {remedy}" if remedy else "")
        )


def _check_series_column(source: SeriesInput, column: Column) -> Iterator[str]:
    """Yields problems of a column that clients send as windows of values."""
    if not column.is_required and source.missing == "refuse":
        yield (
            f"column {column.name!r} is not required in the contract, so a window could lack a value; "
            "set `missing` to what replaces it"
        )
    for rule, place in column.located_rules(is_key=False):
        if place[0] == "quality" and rule.is_about_rows and rule.severity == "error" and rule.kind != "required":
            yield (
                f"column {column.name!r} {rule.sentence}, by its `quality`, which the endpoint does not check in "
                "windows; put limits into logicalTypeOptions, or make the rule a warning"
            )


def _check_image_size(source: ImageInput, column: Column) -> Iterator[str]:
    channels, height, width = source.shape
    size = channels * height * width
    options = column.logical_type_options
    if (options.min_items, options.max_items) != (size, size):
        yield (
            f"an image of shape {list(source.shape)} has {size} values, but the contract allows column "
            f"{column.name!r} to have {options.min_items} to {options.max_items}"
        )
