"""Plans the label: its classes, or the spread of a quantity, and how many rows have no usable value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.tasks.scaffolding.planning.class_order import infer_order
from bloomery.tasks.scaffolding.planning.label_sets import LabelSets, parse_sets
from bloomery.tasks.scaffolding.planning.task_inference import is_whole
from bloomery.tasks.scaffolding.planning.word_tags import WordTags
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, count_values, standard_deviation

MIN_ROWS_PER_CLASS = 10  # with fewer, the training split might have none
_MAX_CLASSES = 1_000


class LabelPlan(NamedTuple):
    """The label: its classes with their numbers of rows, in order, and how many rows have no class or a rare one.

    A quantity has no classes, but a standard deviation. The classes of `sets` are the labels in them. Those of an
    ordinal task have an `order`, unless they are integers from the lowest to the highest. `others` are the labels
    that the same network predicts: any of them may be missing. The classes of `tags` are those of words.
    """

    column: ColumnProfile
    logical_type: Literal["integer", "string", "number", "boolean", "array"]
    classes: tuple[tuple[Any, int], ...] = ()
    rare_classes: tuple[Any, ...] = ()
    num_rare_rows: int = 0
    standard_deviation: float | None = None
    sets: LabelSets | None = None
    tags: WordTags | None = None
    is_ordinal: bool = False
    order: tuple[Any, ...] | None = None
    may_be_missing: bool = False
    others: tuple[LabelPlan, ...] = ()

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def all_labels(self) -> tuple[LabelPlan, ...]:
        """This label, and the others that the same network predicts."""
        return (self, *self.others)

    @property
    def num_all_rare_rows(self) -> int:
        """The rows with a rare class of any label; a row with several counts as often."""
        return sum(label.num_rare_rows for label in self.all_labels)

    @property
    def num_missing(self) -> int:
        return self.column.num_missing

    @property
    def task(self) -> Task:
        if self.tags is not None:
            return "tagging"
        if self.sets is not None:
            return "multilabel"
        if self.is_ordinal:
            return "ordinal"
        return "classification" if self.standard_deviation is None else "regression"

    @property
    def num_classes(self) -> int:
        """The number of classes that a category's shares can be counted in; of sets of labels none can."""
        return max(len(self.classes), 1) if self.sets is None else 10**9

    @property
    def majority_share(self) -> float:
        """The share of the largest class."""
        return max(num for _, num in self.classes) / sum(num for _, num in self.classes)

    def describe_unused_rows(self) -> str:
        """Returns the rows that are quarantined for their label, as a clause; empty if there are none."""
        clauses = []
        if self.rare_classes:
            names = ", ".join(map(str, self.rare_classes[:5])) + (", …" if len(self.rare_classes) > 5 else "")
            noun = "row" if self.num_rare_rows == 1 else "rows"
            clauses.append(f"{self.num_rare_rows:,} {noun} of rare classes ({names})")
        if self.num_missing and self.sets is None and self.task != "regression" and not self.may_be_missing:
            clauses.append(f"{self.num_missing:,} {'row' if self.num_missing == 1 else 'rows'} without a label")
        return f"; quarantined: {' and '.join(clauses)}" if clauses else ""

    def known_classes(self, values: Iterable[Any]) -> set[Any]:
        """Returns the classes among the values of the source; rare ones are quarantined, so they do not count."""
        classes = {value for value, _ in self.classes}
        if self.sets is not None or self.tags is not None:
            return classes & parse_sets(values)
        return classes & {_as_class(value, self.logical_type) for value in values if value is not None}


def plan_label(column: ColumnProfile, scratch: Path, split_column: str | None, task: Task) -> LabelPlan:
    """Returns the plan for a label of classes or quantities, as the `task` says.

    Raises:
        DataUnfit: the values do not suit the task.
    """
    if task == "regression":
        return _plan_quantity(column, scratch)
    logical_type = _class_type(column)
    all_classes = _count_classes(column.value_counts or (), logical_type)
    train_classes = all_classes
    if split_column is not None:
        train_classes = _count_classes(_count_labels(column, "train", scratch).items(), logical_type)
        _require_known_labels(column, scratch)
    common_classes = sorted(value for value, num in train_classes.items() if num >= MIN_ROWS_PER_CLASS)
    if not 2 <= len(common_classes) <= _MAX_CLASSES:
        raise _label_error(column, _describe_classes(train_classes, len(common_classes)))
    rare_classes = tuple(sorted(value for value in all_classes if value not in common_classes))
    return LabelPlan(
        column=column,
        logical_type=logical_type,
        classes=tuple((value, all_classes[value]) for value in common_classes),
        rare_classes=rare_classes,
        num_rare_rows=sum(all_classes[value] for value in rare_classes),
    )


def add_labels(
    label: LabelPlan, others: Iterable[ColumnProfile], scratch: Path, split_column: str | None, task: Task
) -> LabelPlan:
    """Returns the plan with `others`, which the same network predicts. Each of the labels may be missing in a row."""
    plans = (plan_label(column, scratch, split_column, task) for column in others)
    return label._replace(may_be_missing=True, others=tuple(plan._replace(may_be_missing=True) for plan in plans))


def plan_sets(sets: LabelSets, column: ColumnProfile) -> LabelPlan:
    """Returns the plan for a column of sets of labels; labels of few rows are left out of the sets."""
    return LabelPlan(column, "array", classes=sets.counts, sets=sets)


def plan_tags(tags: WordTags, column: ColumnProfile) -> LabelPlan:
    """Returns the plan for a column of tags of words. Rows with fewer or more tags than words are quarantined."""
    return LabelPlan(column, "array", classes=tags.counts, num_rare_rows=tags.num_unequal, tags=tags)


def order_classes(label: LabelPlan, requested: Sequence[str] | None) -> LabelPlan:
    """Returns the plan of a label with ordered classes. Integers order themselves, unless an order is requested.

    Raises:
        DataUnfit: texts have no known order, or the order is not that of the classes.
    """
    classes = [value for value, _ in label.classes]
    names = ", ".join(map(str, classes[:20]))
    if label.logical_type == "boolean":
        raise DataUnfit(
            f"column {label.name} is a boolean, whose two classes have no order that matters",
            required="integers or texts",
            where="--task ordinal",
            remedy="use --task classification",
        )
    if requested is None and label.logical_type == "integer":
        return label._replace(is_ordinal=True)
    order = infer_order(classes) if requested is None else requested
    if order is None:
        raise DataUnfit(
            f"the classes of column {label.name} have no order that is known: {names}",
            required="all classes from the lowest to the highest",
            where="--task ordinal",
            remedy=f"add --order {','.join(map(str, classes[:3]))}{',…' if len(classes) > 3 else ''} in your order",
        )
    positions = {str(name): number for number, name in enumerate(order)}
    missing = [name for name in classes if str(name) not in positions]
    unknown = sorted(set(positions) - set(map(str, [*classes, *label.rare_classes])))
    if missing or unknown or len(positions) < len(order):
        finding = (
            f"misses {', '.join(map(str, missing))}" if missing else f"names {', '.join(unknown)}, which no row has"
        )
        raise DataUnfit(
            "--order names a class twice" if len(positions) < len(order) else f"--order {finding}",
            required=f"each class of column {label.name} once: {names}",
            where="--order",
            remedy="correct the list; names are separated by commas, from the lowest to the highest",
        )
    return label._replace(is_ordinal=True, order=tuple(sorted(classes, key=lambda name: positions[str(name)])))


def _plan_quantity(column: ColumnProfile, scratch: Path) -> LabelPlan:
    if column.logical_type not in ("integer", "number"):
        raise DataUnfit(
            f"column {column.name} cannot be a quantity: its type is {column.logical_type}",
            required="numbers",
            where="--task regression",
            remedy="choose another --label, or --task classification",
        )
    logical_type: Literal["integer", "number"] = "integer" if column.logical_type == "integer" else "number"
    deviation = standard_deviation(scratch, column.name)
    if not deviation > 0:
        raise _label_error(column, "all its numbers are equal")
    return LabelPlan(column, logical_type, standard_deviation=deviation)


def _describe_classes(counts: Mapping[Any, int], num_common: int) -> str:
    """Returns why values are no classes."""
    if not counts:
        return "it has no values"
    if len(counts) == 1:
        return f"all its values are {next(iter(counts))!r}"
    return f"it has {len(counts):,} distinct values, {num_common:,} of them in at least {MIN_ROWS_PER_CLASS} rows"


def _count_classes(counts: Iterable[tuple[Any, int]], logical_type: str) -> dict[Any, int]:
    """Returns the number of rows of each class. A text among numbers belongs to no class."""
    classes: dict[Any, int] = {}
    for value, num in counts:
        label = _as_class(value, logical_type)
        if label is not None:
            classes[label] = classes.get(label, 0) + num
    return classes


def _count_labels(column: ColumnProfile, split: str, scratch: Path) -> dict[Any, int]:
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
        if not all(map(is_whole, values)):
            raise _label_error(column, "it has fractions, so its numbers are no classes")
    elif column.logical_type == "array":
        raise DataUnfit(
            f"column {column.name} cannot be the label: its values are lists, so a row may have several labels",
            required="one label in every row",
            where="--label",
            remedy="--task multilabel, or omit --task",
        )
    else:
        raise _label_error(column, f"its values are of type {column.logical_type}")
    if column.value_counts is None:
        raise _label_error(column, f"it has at least {column.num_distinct:,} distinct values")
    return logical_type


def _require_known_labels(column: ColumnProfile, scratch: Path) -> None:
    """Raises DataUnfit where another split has rows, but none of a class of the training split."""
    train_labels = set(_count_labels(column, "train", scratch))
    for split in ("val", "test"):
        labels = set(_count_labels(column, split, scratch))
        if labels and not labels & train_labels:
            examples = ", ".join(map(str, sorted(labels, key=str)[:5]))
            raise _label_error(column, f"{split} has none of the labels of train, but {examples}")


def _label_error(column: ColumnProfile, problem: str) -> DataUnfit:
    remedy = "choose another column"
    if column.logical_type in ("integer", "number"):
        remedy += ", or --task regression"
    separator = _find_separator([value for value, _ in column.value_counts or ()])
    if separator is not None:
        remedy = f"if {separator!r} separates the labels of a row, --task multilabel; otherwise choose another column"
    return DataUnfit(
        f"column {column.name} cannot be the label: {problem}",
        required=f"2 to {_MAX_CLASSES} classes as whole numbers, texts or booleans, each in at least "
        f"{MIN_ROWS_PER_CLASS} rows; or numbers that differ",
        where="--label",
        remedy=remedy,
    )


def _find_separator(values: Sequence[Any]) -> str | None:
    """Returns the sign that separates several labels in one text, if the same labels occur in many of the texts."""
    for separator in (";", "|", ","):
        lists = [str(value).split(separator) for value in values]
        labels = {label.strip() for texts in lists for label in texts}
        if lists and sum(len(texts) > 1 for texts in lists) > len(lists) / 2 and len(labels) < len(lists) / 2:
            return separator
    return None
