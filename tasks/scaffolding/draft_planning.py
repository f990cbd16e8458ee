"""Plans the drafts for a profiled source: key, label, inputs, and how many rows are quarantined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.tasks.scaffolding.column_names import find_column, unused_name
from bloomery.tasks.scaffolding.input_planning import InputPlan, is_row_number, plan_inputs, split_words
from bloomery.tasks.scaffolding.leakage import Leak, find_leaks
from bloomery.tasks.scaffolding.profiler import (
    ColumnProfile,
    SourceProfile,
    count_distinct_rows,
    count_values,
    standard_deviation,
)

MIN_ROWS = 30
_MIN_ROWS_PER_CLASS = 10  # with fewer, the training split might have none
_MAX_CLASSES = 1_000
_MAX_RARE_CLASSES = 20  # whole numbers with more values are a quantity, where most values are rare
_MAX_COMPARED_COLUMNS = 1_000  # in which rows are compared: an engine groups by no more
_NO_KEY = "no column is unique and named, counted or coded like an identifier"
_MIN_CODE_LENGTH, _MAX_KEY_LENGTH = 4, 200  # characters of a key
_KEY_WORDS = frozenset({"id", "key", "uuid", "guid", "no", "nr", "number", "index", "row", "rowid", "path", "filename"})


@dataclass(frozen=True)
class ColumnRoles:
    """The columns that the user names: the `label` to predict, and the `key` of a row; None to find or add a key."""

    label: str
    key: str | None = None


class LabelPlan(NamedTuple):
    """The label: its classes with their numbers of rows, in order, and how many rows have no class or a rare one.

    A quantity has no classes, but a standard deviation.
    """

    name: str
    logical_type: Literal["integer", "string", "number", "boolean"]
    num_missing: int
    classes: tuple[tuple[Any, int], ...] = ()
    rare_classes: tuple[Any, ...] = ()
    num_rare_rows: int = 0
    standard_deviation: float | None = None

    @property
    def task(self) -> Task:
        return "classification" if self.standard_deviation is None else "regression"

    @property
    def majority_share(self) -> float:
        """The share of the largest class."""
        return max(num for _, num in self.classes) / sum(num for _, num in self.classes)


class KeyPlan(NamedTuple):
    """The column that identifies a row, and why; `is_added` where the source has none and rows get numbers."""

    name: str
    is_added: bool
    reason: str


class DraftPlan(NamedTuple):
    """The content of both drafts, by the source's column names. `num_usable_rows` are left to learn from.

    `keep_duplicates` where most rows are copies of others, or have too many columns to be compared.
    """

    profile: SourceProfile
    label: LabelPlan
    key: KeyPlan
    inputs: InputPlan
    num_usable_rows: int
    num_quarantined: int
    keep_duplicates: bool
    split_column: str | None
    leaks: tuple[Leak, ...]

    @property
    def quarantined_share(self) -> float:
        return self.num_quarantined / (self.profile.num_rows + self.profile.num_malformed)


def plan_draft(
    profile: SourceProfile,
    data: DataSource,
    scratch: Path,
    names: dict[str, str],
    roles: ColumnRoles,
    shape: Sequence[int] = (),
) -> DraftPlan:
    """Returns the plan for the profiled rows in `scratch`.

    Args:
        names: the contract's names of the source's columns.
        roles: the label and the key, by the source's or the contract's names.
        shape: the sizes of an array, where the source states them.

    Raises:
        DataMissing: there is no such label or key.
        DataUnfit: there are too few rows, no classes, a key that is not unique, or nothing to learn from.
    """
    _require_rows(profile.num_rows, profile, data)
    split_column = "part" if data.sources is not None else None
    label_column = find_column(roles.label, names, "--label")
    label_plan = _plan_label(_column(profile, label_column), profile, scratch, split_column)
    key_plan = _plan_key(profile, names, roles.key, (label_column, *filter(None, [split_column])))
    reserved = {label_column: "it is the label"} | ({} if key_plan.is_added else {key_plan.name: "it is the key"})
    if split_column is not None:
        reserved[split_column] = "it names the split"
    inputs = plan_inputs(profile, data, reserved, max(len(label_plan.classes), 1), shape)
    if not inputs.inputs:
        unread = {name: why for name, why in inputs.unused.items() if name not in reserved} | profile.left_out
        reasons = "; ".join(f"{name}: {why}" for name, why in unread.items())
        raise DataUnfit(
            f"no column is left to learn from ({reasons or 'there are only label and key'})",
            required="at least one column of numbers, categories, dates, text or an array beside the label",
            where=data.description,
            remedy="choose data with more columns, or another --label or --delimiter",
        )
    num_quarantined = _count_quarantined(profile, label_plan, data)
    num_kept = profile.num_rows + profile.num_malformed - num_quarantined
    _require_rows(num_kept, profile, data, label_plan)
    compared_columns = [*inputs.columns, label_column]
    is_wide = len(compared_columns) > _MAX_COMPARED_COLUMNS
    num_distinct = profile.num_rows if is_wide else count_distinct_rows(scratch, compared_columns)
    keep_duplicates = is_wide or num_distinct < 0.5 * profile.num_rows
    return DraftPlan(
        profile=profile,
        label=label_plan,
        key=key_plan,
        inputs=inputs,
        num_usable_rows=num_kept if keep_duplicates else min(num_kept, num_distinct),
        num_quarantined=num_quarantined,
        keep_duplicates=keep_duplicates,
        split_column=split_column,
        leaks=find_leaks(profile, scratch, inputs.columns, label_column, is_regression=label_plan.task == "regression"),
    )


def _require_rows(num_kept: int, profile: SourceProfile, data: DataSource, label: LabelPlan | None = None) -> None:
    num_rows = profile.num_rows + profile.num_malformed
    if num_kept < max(MIN_ROWS, num_rows / 2):
        first_malformed = f"; {profile.first_malformed}" if profile.first_malformed else ""
        losses = {column.name: column.num_invalid for column in profile.columns if column.num_invalid}
        if label is not None:
            losses[label.name] = losses.get(label.name, 0) + label.num_missing + label.num_rare_rows
        details = "".join(
            f"; column {name}: {num:,} rows without a usable value" for name, num in losses.items() if num
        )
        raise DataUnfit(
            f"only {max(num_kept, 0)} of {num_rows} rows can be learned from{details}{first_malformed}",
            required=f"at least {MIN_ROWS}, and at least half of all",
            where=data.description,
            remedy="provide more rows, or rows with a label and with values of one type",
        )


def _column(profile: SourceProfile, name: str) -> ColumnProfile:
    return next(column for column in profile.columns if column.name == name)


def _count_quarantined(profile: SourceProfile, label: LabelPlan, data: DataSource) -> int:
    """Returns the largest possible number of quarantined rows: a row with two faults counts twice."""
    rates = profile.column("sample_rate") if data.kind == "audio" else None
    num_other_rates = sum(num for _, num in (rates.value_counts or ())[1:]) if rates is not None else 0
    num_invalid = sum(column.num_invalid for column in profile.columns)
    return profile.num_malformed + num_invalid + label.num_missing + label.num_rare_rows + num_other_rates


def _plan_label(column: ColumnProfile, profile: SourceProfile, scratch: Path, split_column: str | None) -> LabelPlan:
    if _is_quantity(column):
        return _plan_quantity(column, scratch)
    logical_type = _class_type(column)
    all_classes = _count_classes(column.value_counts or (), logical_type)
    train_classes = all_classes
    if split_column is not None:
        train_classes = _count_classes(_count_labels(column, "train", profile, scratch).items(), logical_type)
        _require_known_labels(column, profile, scratch)
    common_classes = sorted(value for value, num in train_classes.items() if num >= _MIN_ROWS_PER_CLASS)
    if not 2 <= len(common_classes) <= _MAX_CLASSES:
        num_common = f"{len(common_classes)} of them in at least {_MIN_ROWS_PER_CLASS} rows"
        raise _label_error(column, f"it has {len(train_classes)} distinct values, {num_common}")
    rare_classes = tuple(sorted(value for value in all_classes if value not in common_classes))
    return LabelPlan(
        name=column.name,
        logical_type=logical_type,
        classes=tuple((value, all_classes[value]) for value in common_classes),
        rare_classes=rare_classes,
        num_missing=column.num_missing,
        num_rare_rows=sum(all_classes[value] for value in rare_classes),
    )


def _is_quantity(column: ColumnProfile) -> bool:
    """Whether a label is a quantity: fractions, or whole numbers with too many values to be classes."""
    if column.logical_type not in ("integer", "number"):
        return False
    if column.value_counts is None or not all(_is_whole(value) for value, _ in column.value_counts):
        return True
    num_common = sum(num >= _MIN_ROWS_PER_CLASS for _, num in column.value_counts)
    is_mostly_rare = len(column.value_counts) > _MAX_RARE_CLASSES and num_common < len(column.value_counts) / 2
    return is_mostly_rare or len(column.value_counts) > _MAX_CLASSES


def _plan_quantity(column: ColumnProfile, scratch: Path) -> LabelPlan:
    logical_type: Literal["integer", "number"] = "integer" if column.logical_type == "integer" else "number"
    deviation = standard_deviation(scratch, column.name)
    if not deviation > 0:
        raise _label_error(column, "all its numbers are equal")
    return LabelPlan(column.name, logical_type, column.num_missing, standard_deviation=deviation)


def _count_classes(counts: Iterable[tuple[Any, int]], logical_type: str) -> dict[Any, int]:
    """Returns the number of rows of each class. A text among numbers belongs to no class."""
    classes: dict[Any, int] = {}
    for value, num in counts:
        label = _as_class(value, logical_type)
        if label is not None:
            classes[label] = classes.get(label, 0) + num
    return classes


def _count_labels(column: ColumnProfile, split: str, profile: SourceProfile, scratch: Path) -> dict[Any, int]:
    counts = count_values(scratch, column.name, split)
    return {value: num for value, num in counts.items() if value not in column.missing}


def _as_class(value: Any, logical_type: str) -> int | str | None:
    """Returns a value of the label as a class; None for a text among numbers."""
    if logical_type == "string":
        return str(value)
    if logical_type == "boolean":
        return str(value).lower()
    try:
        return int(float(value)) if not isinstance(value, int) else value
    except ValueError:
        return None


def _class_type(column: ColumnProfile) -> Literal["integer", "string", "boolean"]:
    values = [value for value, _ in column.value_counts or ()]
    is_text = all(isinstance(value, str) for value in values)
    logical_type: Literal["integer", "string", "boolean"]
    if column.logical_type == "boolean":
        logical_type = "boolean"
    elif column.logical_type == "string" or (column.logical_type == "date" and is_text):
        logical_type = "string"
    elif column.logical_type in ("integer", "number"):
        logical_type = "integer"
    else:
        raise _label_error(column, f"its values are of type {column.logical_type}")
    if column.value_counts is None:
        raise _label_error(column, f"it has at least {column.num_distinct:,} distinct values")
    return logical_type


def _is_whole(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and float(value).is_integer() and abs(float(value)) < 2**53
    except ValueError:
        return False


def _require_known_labels(column: ColumnProfile, profile: SourceProfile, scratch: Path) -> None:
    """Raises DataUnfit where another split has rows, but none of a class of the training split."""
    train_labels = set(_count_labels(column, "train", profile, scratch))
    for split in ("val", "test"):
        labels = set(_count_labels(column, split, profile, scratch))
        if labels and not labels & train_labels:
            examples = ", ".join(map(str, sorted(labels, key=str)[:5]))
            raise _label_error(column, f"{split} has none of the labels of train, but {examples}")


def _label_error(column: ColumnProfile, problem: str) -> DataUnfit:
    return DataUnfit(
        f"column {column.name} cannot be the label: {problem}",
        required=f"2 to {_MAX_CLASSES} classes as whole numbers, texts or booleans, each in at least "
        f"{_MIN_ROWS_PER_CLASS} rows; or numbers that differ",
        where="--label",
        remedy="choose another column",
    )


def _plan_key(profile: SourceProfile, names: dict[str, str], requested: str | None, reserved: Sequence[str]) -> KeyPlan:
    if requested is not None:
        name = find_column(requested, names, "--key")
        column = _column(profile, name)
        if name in reserved or not column.is_unique or column.logical_type not in ("integer", "string"):
            counts = f"{column.num_missing} missing and {column.num_distinct:,} distinct values"
            raise DataUnfit(
                f"column {name} cannot be the key: it is {column.logical_type} with {counts} in {column.num_rows:,} "
                "rows",
                required="a column of text or whole numbers with a unique value in every row",
                where="--key",
                remedy="choose another column, or omit --key: then rows get numbers",
            )
        return KeyPlan(name, is_added=False, reason="as requested")
    candidates = [
        column
        for column in profile.columns
        if column.is_unique and column.logical_type in ("integer", "string") and column.name not in reserved
    ]
    for reason, is_key in _KEY_SIGNS:
        for column in candidates:
            if is_key(column):
                return KeyPlan(column.name, is_added=False, reason=reason)
    name = unused_name("row_id", [*names, *names.values()])
    return KeyPlan(name, is_added=True, reason=_NO_KEY)


def _is_named_like_key(column: ColumnProfile) -> bool:
    return bool(_KEY_WORDS & set(split_words(column.name))) and (column.max_length or 0) <= _MAX_KEY_LENGTH


def _is_code(column: ColumnProfile) -> bool:
    """Whether the texts are of one length, as serial numbers and hashes are, but free text is not."""
    shortest, longest = column.min_length or 0, column.max_length or 0
    return column.logical_type == "string" and _MIN_CODE_LENGTH <= shortest == longest <= _MAX_KEY_LENGTH


# What makes a complete and unique column a key, the surest sign first. Measurements may be unique by chance.
_KEY_SIGNS: tuple[tuple[str, Callable[[ColumnProfile], bool]], ...] = (
    ("it is unique and has the name of an identifier", _is_named_like_key),
    ("it numbers the rows", is_row_number),
    ("its texts are unique and of one length", _is_code),
)
