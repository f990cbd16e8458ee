"""Finds the column that names the split of each row, such as `split` with train and test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.data_contracts.errors import DataMissing, DataUnfit, RecipeInvalid
from bloomery.models.features.splits import SPLITS
from bloomery.tasks.scaffolding.planning.label_planning import LabelPlan
from bloomery.tasks.scaffolding.planning.split_planning import SplitPlan, count_by_group
from bloomery.tasks.scaffolding.profiling.column_names import find_column
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.source_options.split_names import SPLIT_NAMES


class GivenSplit(NamedTuple):
    """A column that names splits, and the split of each of its texts; no texts where it is that of the files."""

    column: ColumnProfile
    parts: dict[str, str]


def require_split_column(requested: str | None, names: dict[str, str]) -> str | None:
    """Returns the source's name of a column that is requested; None if none is.

    Raises:
        RecipeInvalid: there is no such column.
    """
    try:
        return None if requested is None else find_column(requested, names, "--split")
    except DataMissing as missing:
        raise RecipeInvalid(
            missing.found,
            required="key, group, time, given or a column that names the splits",
            where="--split",
            remedy="correct it, or omit it: then it is inferred from the data",
        ) from missing


def find_split_column(
    profile: SourceProfile, reserved: Collection[str], requested: str | None, *, is_required: bool
) -> GivenSplit | None:
    """Returns the column that has the names of splits and nothing else, train and another one at least.

    Without a split for tests, that for validation is it.

    Raises:
        DataUnfit: the column `requested`, or any if one `is_required`, has no such values.
    """
    candidates = [
        column for column in profile.columns if column.name not in reserved and requested in (None, column.name)
    ]
    for column in candidates:
        parts = _name_parts(column)
        if parts:
            return GivenSplit(column, parts)
    if requested is None and not is_required:
        return None
    values = [value for column in candidates for value, _ in (column.value_counts or ())[:5]] if requested else []
    holds = f"column {requested} holds {', '.join(map(str, values))}" if values else "no column names the splits"
    raise DataUnfit(
        holds,
        required=f"a column with the texts {', '.join(SPLITS)}, of which train and test must occur; or training, dev, "
        "validation, testing, in any case",
        where="--split",
        remedy="name another column, or choose --split key, group or time",
    )


def _name_parts(column: ColumnProfile) -> dict[str, str]:
    """Returns the split of each text of a column; nothing where a text names none, or train or another is missing."""
    texts = [value for value, _ in column.value_counts or ()]
    if column.logical_type != "string" or not all(str(text).strip().lower() in SPLIT_NAMES for text in texts):
        return {}
    parts = {str(text): SPLIT_NAMES[str(text).strip().lower()] for text in texts}
    if "test" not in parts.values():
        parts = {text: "test" if part == "val" else part for text, part in parts.items()}
    return parts if {"train", "test"} <= set(parts.values()) else {}


def plan_given_split(given: GivenSplit, label: LabelPlan, scratch: Path, *, is_requested: bool) -> SplitPlan | str:
    """Returns the split by this column, or what is against it.

    Raises:
        DataUnfit: something is against it, although it is requested.
    """
    name, parts = given.column.name, given.parts
    classes = (label.column,) if label.task in ("classification", "ordinal") else ()
    counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
    for text, numbers in count_by_group(scratch, given.column, classes).items():
        counts[parts[text]].update(numbers)
    problem = ""
    if classes:
        known = label.known_classes(counts["train"])
        absent = [str(value) for value, _ in label.classes if value not in known]
        problem = f"its train has no row of the class {absent[0]}" if absent else ""
        if not problem and not label.known_classes(counts["test"]):
            problem = "its test has no row with a label of train"
    if problem and is_requested:
        raise DataUnfit(
            f"the rows cannot be split by {name}: {problem}",
            required="rows of every class in train",
            where="--split",
            remedy="choose --split key, group or time, or write the column in another way",
        )
    if problem:
        return f"not by {name}, which names splits: {problem}"
    totals = ", ".join(f"{counts[part].total():,} {part}" for part in SPLITS if part in counts)
    reason = f"column {name} names the split of each row: {totals}"
    if "val" not in counts:
        reason += "; a part of train becomes val"
    replaced = tuple((text, part) for text, part in parts.items() if text != part)
    return SplitPlan("given", name, f"{reason}; --split key ignores it", replaced=replaced)
