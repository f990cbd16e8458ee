"""What drafts say of a profiled source: key, label, inputs, and how many rows are set aside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import Data
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.tasks.scaffolding.column_names import find_column, unused_name
from bloomery.tasks.scaffolding.input_planning import InputPlan, plan_inputs, split_words
from bloomery.tasks.scaffolding.profiler import (
    ColumnProfile,
    SourceProfile,
    count_distinct_rows,
    count_values,
    standard_deviation,
)

MIN_ROWS = 30
_FEWEST_OF_CLASS = 10  # rows: with fewer, the training part might have none
_MOST_CLASSES = 1_000
_FEW_CLASSES = 20  # whole numbers with more values are a quantity, where most values are rare
_MOST_COMPARED = 1_000  # columns in which rows are compared: an engine groups by no more
_KEYS = frozenset({"id", "key", "uuid", "guid", "no", "nr", "number", "index", "row", "rowid", "path", "filename"})


class LabelPlan(NamedTuple):
    """The label: its classes with their rows, in order, and how many rows have no class or a rare one.

    A quantity has no classes, but a standard deviation.
    """

    name: str
    kind: Literal["integer", "string", "number"]
    num_missing: int
    classes: tuple[tuple[Any, int], ...] = ()
    rare: tuple[Any, ...] = ()
    num_rare: int = 0
    deviation: float | None = None

    @property
    def task(self) -> Task:
        return "classification" if self.deviation is None else "regression"

    @property
    def majority(self) -> float:
        """The share of the largest class."""
        return max(num for _, num in self.classes) / sum(num for _, num in self.classes)


class KeyPlan(NamedTuple):
    """The column that tells rows apart; `is_added` where the source has none and rows are numbered."""

    name: str
    is_added: bool


class DraftPlan(NamedTuple):
    """All that the drafts say, by the names of the source. `num_rows` are left to learn from.

    `keeps_copies` where most rows are copies of others, or have too many columns to be compared.
    """

    profile: SourceProfile
    label: LabelPlan
    key: KeyPlan
    inputs: InputPlan
    num_rows: int
    num_aside: int
    keeps_copies: bool
    part: str | None

    @property
    def share_aside(self) -> float:
        return self.num_aside / (self.profile.num_rows + self.profile.num_malformed)


def plan_draft(
    profile: SourceProfile,
    data: Data,
    scratch: Path,
    names: dict[str, str],
    *,
    label: str,
    key: str | None,
    shape: Sequence[int] = (),
) -> DraftPlan:
    """The plan for the rows that were profiled into `scratch`. `names` are the contract's names of the columns.

    Raises:
        DataMissing: there is no such label or key.
        DataUnfit: there are too few rows, no classes, a key that does not tell rows apart, or nothing to learn from.
    """
    _require_rows(profile.num_rows, profile, data)
    part = "part" if data.sources is not None else None
    label_column = find_column(label, names, "--label")
    found = _label(_column(profile, label_column), profile, scratch, part)
    chosen = _key(profile, names, key, (label_column, *filter(None, [part])))
    not_read = {label_column: "it is the label"} | ({} if chosen.is_added else {chosen.name: "it is the key"})
    if part is not None:
        not_read[part] = "it says the part"
    inputs = plan_inputs(profile, data, not_read, max(len(found.classes), 1), shape)
    if not inputs.planned:
        reasons = "; ".join(f"{name}: {why}" for name, why in inputs.left_out.items() if name not in not_read)
        raise DataUnfit(
            f"no column is left to learn from ({reasons or 'there is none but label and key'})",
            required="at least one column of numbers, categories, dates, text or an array beside the label",
            where=data.described,
            remedy="give data with more columns, or another --label or --delimiter",
        )
    num_aside = _num_aside(profile, found, data)
    num_kept = profile.num_rows + profile.num_malformed - num_aside
    _require_rows(num_kept, profile, data)
    read = [*inputs.columns, label_column]
    is_wide = len(read) > _MOST_COMPARED
    num_different = profile.num_rows if is_wide else count_distinct_rows(scratch, read)
    keeps_copies = is_wide or num_different < 0.5 * profile.num_rows
    num_rows = num_kept if keeps_copies else min(num_kept, num_different)
    return DraftPlan(profile, found, chosen, inputs, num_rows, num_aside, keeps_copies, part)


def _require_rows(num_kept: int, profile: SourceProfile, data: Data) -> None:
    num_all = profile.num_rows + profile.num_malformed
    if num_kept < max(MIN_ROWS, num_all / 2):
        raise DataUnfit(
            f"{num_kept} of {num_all} rows can be learnt from"
            + (f"; {profile.malformed}" if profile.malformed else ""),
            required=f"at least {MIN_ROWS}, and at least half of all",
            where=data.described,
            remedy="bring more rows, or give rows a label and values of one kind",
        )


def _column(profile: SourceProfile, name: str) -> ColumnProfile:
    return next(column for column in profile.columns if column.name == name)


def _num_aside(profile: SourceProfile, label: LabelPlan, data: Data) -> int:
    """At most how many rows are set aside: a row with two faults counts twice."""
    rates = profile.column("sample_rate") if data.kind == "audio" else None
    other_rates = sum(num for _, num in (rates.values or ())[1:]) if rates is not None else 0
    unfit = sum(column.num_unfit for column in profile.columns)
    return profile.num_malformed + unfit + label.num_missing + label.num_rare + other_rates


def _label(column: ColumnProfile, profile: SourceProfile, scratch: Path, part: str | None) -> LabelPlan:
    if _is_quantity(column):
        return _quantity(column, scratch)
    kind = _kind_of_label(column)
    all_classes = _classes(column.values or (), kind)
    known = all_classes
    if part is not None:
        known = _classes(_labels_of(column, "train", profile, scratch).items(), kind)
        _require_known(column, profile, scratch)
    common = sorted(value for value, num in known.items() if num >= _FEWEST_OF_CLASS)
    if not 2 <= len(common) <= _MOST_CLASSES:
        told = f"{len(known)} different values, {len(common)} of them in at least {_FEWEST_OF_CLASS} rows"
        raise _no_label(column, f"it has {told}")
    rare = tuple(sorted(value for value in all_classes if value not in common))
    return LabelPlan(
        name=column.name,
        kind=kind,
        classes=tuple((value, all_classes[value]) for value in common),
        rare=rare,
        num_missing=column.num_missing,
        num_rare=sum(all_classes[value] for value in rare),
    )


def _is_quantity(column: ColumnProfile) -> bool:
    """Whether a label is a figure: numbers that are not whole, or that have too many values to be classes."""
    if column.kind not in ("integer", "number"):
        return False
    if column.values is None or not all(_is_whole(value) for value, _ in column.values):
        return True
    num_common = sum(num >= _FEWEST_OF_CLASS for _, num in column.values)
    is_rare = len(column.values) > _FEW_CLASSES and num_common < len(column.values) / 2
    return is_rare or len(column.values) > _MOST_CLASSES


def _quantity(column: ColumnProfile, scratch: Path) -> LabelPlan:
    kind: Literal["integer", "number"] = "integer" if column.kind == "integer" else "number"
    deviation = standard_deviation(scratch, column.name)
    if not deviation > 0:
        raise _no_label(column, "its figures are all the same")
    return LabelPlan(column.name, kind, column.num_missing, deviation=deviation)


def _classes(counts: Iterable[tuple[Any, int]], kind: str) -> dict[Any, int]:
    """The rows of each class. A text that is no number, where the rest are, is of none."""
    found: dict[Any, int] = {}
    for value, num in counts:
        read = _as_label(value, kind)
        if read is not None:
            found[read] = found.get(read, 0) + num
    return found


def _labels_of(column: ColumnProfile, part: str, profile: SourceProfile, scratch: Path) -> dict[Any, int]:
    counted = count_values(scratch, column.name, part)
    return {value: num for value, num in counted.items() if value not in profile.missing}


def _as_label(value: Any, kind: str) -> int | str | None:
    """A value of the label as a class; None for a text that is no number where the rest are."""
    if kind == "string":
        return str(value)
    try:
        return int(float(value)) if not isinstance(value, int) else value
    except ValueError:
        return None


def _kind_of_label(column: ColumnProfile) -> Literal["integer", "string"]:
    values = [value for value, _ in column.values or ()]
    if column.kind == "string" or (column.kind in ("boolean", "date") and all(isinstance(one, str) for one in values)):
        kind: Literal["integer", "string"] = "string"
    elif column.kind in ("integer", "number"):
        kind = "integer"
    else:
        raise _no_label(column, f"its values are of type {column.kind}")
    if column.values is None:
        raise _no_label(column, f"it has {column.num_distinct:,} different values or more")
    return kind


def _is_whole(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and float(value).is_integer() and abs(float(value)) < 2**53
    except ValueError:
        return False


def _require_known(column: ColumnProfile, profile: SourceProfile, scratch: Path) -> None:
    """Each other part must have rows of the classes of train."""
    known = set(_labels_of(column, "train", profile, scratch))
    for part in ("val", "test"):
        found = set(_labels_of(column, part, profile, scratch))
        if found and not found & known:
            shown = ", ".join(map(str, sorted(found, key=str)[:5]))
            raise _no_label(column, f"part {part} has none of the labels of train, but {shown}")


def _no_label(column: ColumnProfile, found: str) -> DataUnfit:
    return DataUnfit(
        f"column {column.name} cannot be the label: {found}",
        required=f"2 to {_MOST_CLASSES} classes as whole numbers or texts, each in at least {_FEWEST_OF_CLASS} rows; "
        "or numbers that differ",
        where="--label",
        remedy="name another column",
    )


def _key(profile: SourceProfile, names: dict[str, str], stated: str | None, taken: Sequence[str]) -> KeyPlan:
    if stated is not None:
        name = find_column(stated, names, "--key")
        column = _column(profile, name)
        if name in taken or not column.is_unique or column.kind not in ("integer", "string"):
            told = f"{column.num_missing} rows without a value, {column.num_distinct:,} different ones"
            raise DataUnfit(
                f"column {name} cannot be the key: it is {column.kind} with {told} in {column.num_rows:,} rows",
                required="a text or whole number that is there once, in every row",
                where="--key",
                remedy="name another column, or leave --key out: then rows are numbered",
            )
        return KeyPlan(name, is_added=False)
    for column in profile.columns:
        is_named = bool(_KEYS & set(split_words(column.name)))
        fits = column.is_unique and column.kind in ("integer", "string") and column.name not in taken
        if fits and is_named and (column.max_length or 0) <= 200:
            return KeyPlan(column.name, is_added=False)
    return KeyPlan(unused_name("row_id", [*names, *names.values()]), is_added=True)
