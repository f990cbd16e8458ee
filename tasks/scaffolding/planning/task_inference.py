"""Infers from the label whether a model predicts classes or a quantity, by its type and values, not by how many rows.

Few rows show few of the values, so the number of distinct values is estimated with those that no row has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast, get_args

from bloomery.data_contracts.errors import DataUnfit, RecipeInvalid
from bloomery.tasks.scaffolding.planning.class_order import describe_order
from bloomery.tasks.scaffolding.planning.entity_columns import counts_things, names_code
from bloomery.tasks.scaffolding.planning.input_planning import split_words
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile

# The tasks of labels that a draft may have, and those that a user may request.
LabelTask = Literal["classification", "regression", "multilabel", "ordinal", "tagging"]
DraftTask = Literal["classification", "regression", "forecasting", "multilabel", "ordinal", "tagging"]
SplitKind = Literal["key", "group", "time", "given"]
_MAX_CODES = 20  # distinct whole numbers that are classes unless the name says otherwise
_MAX_CODES_OF_COUNT = 10  # the same where the name says that something is counted
_MIN_ROWS_PER_BALANCED = 20
_MIN_SHARE_OF_MARKS = 0.9  # of the values in a column that says whether a row has a label
_MARKS = ("0", "1", "0.0", "1.0", "true", "false", "yes", "no")
_LABEL_NAMES = ("label", "labels", "target", "y", "output", "answer", "truth")  # that say nothing about the values
IMAGES = "arrays of images"  # the kind of a source with a label beside images
_NAMED_BY_FILES = ("images", "audio", "idx", "text")  # kinds of sources whose labels are names of folders and files
_TYPE_NOUNS = {"string": "a text", "boolean": "a boolean", "integer": "an integer", "number": "a number"}


@dataclass(frozen=True)
class TaskRequest:
    """What the user requests of a task; None to infer it. `lags` are the rows in a window of a forecast.

    `split_column` names the split of each row. `order` has the classes of an ordinal task. `is_inferred`: the task is
    that of several labels, by their values.
    """

    task: DraftTask | None = None
    horizon: int | None = None
    lags: int | None = None
    split: SplitKind | None = None
    split_column: str | None = None
    order: tuple[str, ...] | None = None
    is_inferred: bool = False


class TaskChoice(NamedTuple):
    """What a model predicts: the kind of label, whether it is that of a later row, and the reason as a clause."""

    label_task: LabelTask
    is_forecast: bool
    reason: str

    @property
    def name(self) -> DraftTask:
        return "forecasting" if self.is_forecast else self.label_task


def parse_request(
    task: str | None,
    horizon: int | None,
    lags: int | None,
    split: str | None,
    order: tuple[str, ...] | None = None,
) -> TaskRequest:
    """Returns the request of a command line. A `split` of no known kind is the column that names the splits.

    Raises:
        RecipeInvalid: there is no such task, or an option belongs to another task.
    """
    if task is None and (horizon is not None or lags is not None):
        task = "forecasting"
    if task is None and order is not None:
        task = "ordinal"
    if task in ("multi_label", "multi-label"):
        task = "multilabel"
    if task is not None and task not in get_args(DraftTask):
        raise RecipeInvalid(
            f"--task is {task!r}",
            required=f"one of {', '.join(get_args(DraftTask))}",
            where="--task",
            remedy="correct it, or omit it: then it is inferred from the data",
        )
    if order is not None and task != "ordinal":
        raise RecipeInvalid(
            f"--order belongs to ordinal classes, and the task is {task}",
            required="--task ordinal",
            where="--order",
            remedy="omit it, or request ordinal classes",
        )
    split_column = None if split is None or split in get_args(SplitKind) else split
    split = "given" if split_column is not None else split
    if task not in (None, "forecasting") and (horizon is not None or lags is not None):
        raise RecipeInvalid(
            f"--horizon and --lags belong to a forecast, and the task is {task}",
            required="--task forecasting",
            where="--horizon" if horizon is not None else "--lags",
            remedy="omit them, or request a forecast",
        )
    if task == "forecasting" and split not in (None, "time"):
        raise RecipeInvalid(
            f"a forecast is split by {split}",
            required="--split time: later rows must not be known in training",
            where="--split",
            remedy="omit --split",
        )
    split_kind = cast("SplitKind | None", split)
    return TaskRequest(cast("DraftTask | None", task), horizon, lags, split_kind, split_column, order)


def require_task_of_sets(request: TaskRequest, where: str) -> None:
    """Raises RecipeInvalid where several labels, or a separator of labels, are given for another task."""
    if request.task not in (None, "multilabel"):
        raise RecipeInvalid(
            f"{where} belongs to sets of labels, and the task is {request.task}",
            required="--task multilabel",
            where=where,
            remedy=f"omit --task, or give one column that is predicted by a {request.task}",
        )


def infer_label_task(column: ColumnProfile, kind: str = "", requested: DraftTask | None = None) -> TaskChoice:
    """Returns what the label is. `kind` is the kind of its source; a requested task is not questioned here."""
    if requested is not None and requested != "forecasting":
        return TaskChoice(requested, is_forecast=False, reason="as requested")
    if requested == "forecasting":
        label_task: LabelTask = "regression" if may_be_forecast(column) else "classification"
        return TaskChoice(label_task, is_forecast=True, reason="as requested")
    noun = _TYPE_NOUNS.get(column.logical_type, f"of type {column.logical_type}")
    values = [value for value, _ in column.value_counts or ()]
    if column.logical_type not in ("integer", "number"):
        num = f" with {len(values):,} distinct values" if values else ""
        hint = describe_order(column.name, values) if column.logical_type == "string" else ""
        return TaskChoice("classification", is_forecast=False, reason=f"{column.name} is {noun}{num}{hint}")
    if values and not all(map(is_whole, values)):
        return TaskChoice("regression", is_forecast=False, reason=f"{column.name} has fractions")
    num_distinct = f"{column.num_distinct:,}" if values else f"at least {column.num_distinct:,}"
    noun = "an integer" if values else noun
    reason = f"{column.name} is {noun} with {num_distinct} distinct values{_describe_range(column)}"
    if _are_codes(column, kind):
        reason += f"; --task regression for a quantity{describe_order(column.name, values)}"
        return TaskChoice("classification", is_forecast=False, reason=reason)
    remedy = "; --task classification for classes" if values else ""
    return TaskChoice("regression", is_forecast=False, reason=f"{reason}{remedy}")


def infer_task_of_labels(request: TaskRequest, columns: Sequence[ColumnProfile]) -> TaskRequest:
    """Returns the request, with the task of several labels where it has none: classes or numbers.

    Columns of 0 and 1 name a set of labels, whose task is inferred elsewhere.

    Raises:
        DataUnfit: some are classes and some are numbers.
    """
    if request.task is not None or all(map(_is_mark, columns)):
        return request
    return replace(request, task=_find_common_task(columns), is_inferred=True)


def _find_common_task(columns: Sequence[ColumnProfile]) -> Literal["classification", "regression"]:
    are_numbers = [column.logical_type in ("integer", "number") for column in columns]
    if all(are_numbers):
        tasks = {infer_label_task(column).label_task for column in columns}
        return "classification" if tasks == {"classification"} else "regression"
    numbers = [column.name for column in columns if column.logical_type == "number" or _is_quantity(column)]
    if numbers:
        classes = ", ".join(column.name for column in columns if column.name not in numbers)
        raise DataUnfit(
            f"{', '.join(numbers)} is a number, and {classes} has classes",
            required="labels that are all numbers, or all classes",
            where="--label",
            remedy="draft a recipe for the numbers and one for the classes, or state --task classification for whole "
            "numbers that name classes",
        )
    return "classification"


def _is_mark(column: ColumnProfile) -> bool:
    """Whether nearly all values are 0 and 1, or yes and no."""
    counts = column.value_counts or ()
    num_marks = sum(num for value, num in counts if str(value).lower() in _MARKS)
    return num_marks > 0 and num_marks >= _MIN_SHARE_OF_MARKS * sum(num for _, num in counts)


def _is_quantity(column: ColumnProfile) -> bool:
    return column.logical_type == "integer" and infer_label_task(column).label_task == "regression"


def may_be_forecast(column: ColumnProfile) -> bool:
    """Whether the values are numbers of which a later one is a quantity, even if there are few of them."""
    is_number = column.logical_type in ("integer", "number") and column.num_distinct > 2
    return is_number and not names_code(split_words(column.name))


def _describe_range(column: ColumnProfile) -> str:
    if column.minimum is None or column.maximum is None:
        return ""
    low, high = (f"{limit:,.0f}" if is_whole(limit) else f"{limit:g}" for limit in (column.minimum, column.maximum))
    return f" from {low} to {high}"


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number that a float holds exactly; false for a text."""
    try:
        return math.isfinite(float(value)) and float(value).is_integer() and abs(float(value)) < 2**53
    except ValueError:
        return False


def _are_codes(column: ColumnProfile, kind: str) -> bool:
    """Whether whole numbers are codes of classes."""
    words = split_words(column.name)
    if column.value_counts is None:
        return names_code(words)
    counts = [num for _, num in column.value_counts]
    if kind == IMAGES and _are_counted(column, counts) and not counts_things(words):
        return True
    if kind in _NAMED_BY_FILES or names_code(words) or _are_balanced(column, counts):
        return True
    max_codes = _MAX_CODES_OF_COUNT if counts_things(words) else _MAX_CODES
    if estimate_num_distinct(counts) > max_codes:
        return False
    span = 0 if column.minimum is None or column.maximum is None else column.maximum - column.minimum + 1
    num_once = sum(num == 1 for num in counts)
    return span <= max_codes or num_once <= len(counts) / 2


def _are_balanced(column: ColumnProfile, counts: Sequence[int]) -> bool:
    """Whether the numbers are 0, 1, 2, … or 1, 2, 3, … with equally many rows, as someone has chosen them by class."""
    is_label = column.name.lower() in _LABEL_NAMES
    return (
        is_label
        and _are_counted(column, counts)
        and min(counts) >= _MIN_ROWS_PER_BALANCED
        and max(counts) - min(counts) <= 1
    )


def _are_counted(column: ColumnProfile, counts: Sequence[int]) -> bool:
    """Whether the numbers are 0, 1, 2, … or 1, 2, 3, … without a gap."""
    return column.minimum in (0, 1) and column.maximum == column.minimum + len(counts) - 1


def estimate_num_distinct(counts: Sequence[int]) -> float:
    """Returns a lower bound of the number of distinct values, with those that no row of the sample has.

    Source: Chao, "Nonparametric Estimation of the Number of Classes in a Population", 1984, in the form without bias.
    """
    num_once, num_twice = (sum(num == times for num in counts) for times in (1, 2))
    return len(counts) + num_once * (num_once - 1) / (2 * (num_twice + 1))
