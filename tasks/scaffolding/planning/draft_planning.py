"""Plans the drafts for a profiled source: key, label, inputs, and how many rows are quarantined."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.tasks.scaffolding.planning.array_inputs import has_images
from bloomery.tasks.scaffolding.planning.given_splits import (
    GivenSplit,
    find_split_column,
    plan_given_split,
    require_split_column,
)
from bloomery.tasks.scaffolding.planning.input_planning import InputPlan, plan_inputs
from bloomery.tasks.scaffolding.planning.key_planning import KeyPlan, plan_key
from bloomery.tasks.scaffolding.planning.label_planning import (
    LabelPlan,
    add_labels,
    order_classes,
    plan_label,
    plan_sets,
    plan_tags,
)
from bloomery.tasks.scaffolding.planning.label_sets import LabelSets, collect_label_sets
from bloomery.tasks.scaffolding.planning.pretrained_inputs import read_by_checkpoint
from bloomery.tasks.scaffolding.planning.required_columns import count_quarantined, required_columns
from bloomery.tasks.scaffolding.planning.series_planning import (
    SeriesPlan,
    SeriesRequest,
    is_bare_series,
    plan_series,
    plan_series_inputs,
)
from bloomery.tasks.scaffolding.planning.split_planning import SplitPlan, SplitRequest, plan_split
from bloomery.tasks.scaffolding.planning.task_inference import (
    IMAGES,
    TaskChoice,
    TaskRequest,
    infer_label_task,
    infer_task_of_labels,
    may_be_forecast,
    require_task_of_sets,
)
from bloomery.tasks.scaffolding.planning.word_tags import WordTags
from bloomery.tasks.scaffolding.profiling.column_names import find_column, split_names
from bloomery.tasks.scaffolding.profiling.leakage import Leak, find_leaks
from bloomery.tasks.scaffolding.profiling.number_inference import InferredNumbers
from bloomery.tasks.scaffolding.profiling.profiler import SourceProfile, count_distinct_rows

MIN_ROWS = 30
_MAX_COMPARED_COLUMNS = 1_000  # in which rows are compared: an engine groups by no more
_GROUP_REASON = "rows of one value stay in one split, so the model sees other values when it is used"


@dataclass(frozen=True)
class ColumnRoles:
    """The columns that the user names, and the task; None to find a column, or to add a key.

    `label` is predicted, `key` identifies a row, `time` orders the rows. `groups` name the series of a forecast, or
    the one column of which rows stay in one split. `labels` are several columns of 0 and 1, the first of which is
    `label`, and `separator` is between the labels of a text. `sets` and `tags` are what was found in arrays.
    `checkpoint` is the pretrained checkpoint that reads the texts.
    """

    label: str
    key: str | None = None
    time: str | None = None
    groups: tuple[str, ...] = ()
    task: TaskRequest = field(default_factory=TaskRequest)
    labels: tuple[str, ...] = ()
    separator: str | None = None
    sets: LabelSets | None = None
    tags: WordTags | None = None
    others: tuple[str, ...] = ()
    checkpoint: str | None = None

    def find_columns(self, names: dict[str, str]) -> ColumnRoles:
        """Returns the roles by the source's names of the columns, of which `names` has the contract's names.

        Raises:
            DataMissing: there is no such column.
        """
        return replace(
            self,
            label=find_column(self.label, names, "--label"),
            key=None if self.key is None else find_column(self.key, names, "--key"),
            time=None if self.time is None else find_column(self.time, names, "--time"),
            groups=tuple(find_column(group, names, "--group") for group in self.groups),
            labels=tuple(find_column(label, names, "--label") for label in self.labels),
            others=tuple(find_column(label, names, "--label") for label in self.others),
            task=replace(self.task, split_column=require_split_column(self.task.split_column, names)),
        )

    @property
    def requests_sets(self) -> bool:
        """Whether the user says that rows have sets of labels."""
        return self.task.task == "multilabel" or len(self.labels) > 1 or self.separator is not None


class DraftPlan(NamedTuple):
    """The content of both drafts, by the source's column names. `num_usable_rows` are left to learn from.

    `keep_duplicates` where most rows are copies of others, or have too many columns to be compared. `series` is that
    of a forecast.
    """

    profile: SourceProfile
    label: LabelPlan
    key: KeyPlan
    inputs: InputPlan
    num_usable_rows: int
    num_quarantined: int
    keep_duplicates: bool
    split: SplitPlan
    leaks: tuple[Leak, ...]
    task: TaskChoice
    series: SeriesPlan | None = None
    checkpoint: Checkpoint | None = None

    @property
    def quarantined_share(self) -> float:
        return self.num_quarantined / (self.profile.num_rows + self.profile.num_malformed)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The columns that the model predicts."""
        return tuple(label.name for label in self.label.all_labels)

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The columns without which a row has no split, time or series, beside the key."""
        return required_columns(self.split, self.series, self.inputs)

    def describe_purpose(self, names: dict[str, str]) -> str:
        """Returns what the model predicts, as a sentence with the contract's names of the columns."""
        label = ", ".join(f"`{names[name]}`" for name in self.label_names)
        if self.series is None:
            return f"Predicts {label} for each {'row' if self.label.tags is None else 'word'}."
        return f"Forecasts {label} {self.series.horizon} {'row' if self.series.horizon == 1 else 'rows'} ahead."

    def describe_order(self) -> list[tuple[str, str]]:
        """Returns how rows are split, and how windows of a forecast are made, each with its heading."""
        has_column = self.split.column is not None and self.split.by != "given"
        by = f"by {self.split.by}" + (f" {self.split.column}" if has_column else "")
        lines = [("split", f"{by}: {self.split.reason}"), *(("split", note) for note in self.split.notes)]
        if self.series is not None:
            lines += [("series", self.series.reason), *(("series", note) for note in self.series.notes)]
        return lines


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
        roles: the columns that the user names, by the source's or the contract's names, and the task.
        shape: the sizes of an array, where the source states them.

    Raises:
        DataMissing: there is no such column.
        DataUnfit: there are too few rows, no classes, a key that is not unique, no such split or forecast, or nothing
            to learn from.
    """
    _require_rows(profile.num_rows, profile, data)
    roles = roles.find_columns(names)
    split_column = profile.columns[-1].name if data.sources is not None else None
    key_plan = plan_key(profile, names, roles.key, (roles.label, *roles.others, *filter(None, [split_column])))
    reserved = dict.fromkeys((roles.label, *roles.others), "it is the label") | (
        {} if key_plan.is_added else {key_plan.name: "it is the key"}
    )
    given_split = _find_given_split(profile, data, roles, reserved)
    if given_split is not None:
        reserved[given_split.column.name] = "it names the split"
    task, series = _plan_task(profile, data, scratch, roles, tuple(reserved))
    label_plan = _plan_label(profile, scratch, roles, split_column, task)
    if series is not None:
        split, inputs = series.split, plan_series_inputs(profile, series, label_plan.column, reserved)
    else:
        split = _plan_split(profile, scratch, label_plan, roles, tuple(reserved), given_split)
        unread = {split.column: _GROUP_REASON} if split.by == "group" and split.column is not None else {}
        inputs = plan_inputs(profile, data, reserved | unread, label_plan.num_classes, shape)
        if roles.tags is not None:
            inputs = roles.tags.plan_inputs(profile, reserved | unread, roles.checkpoint)
        elif unread and not inputs.inputs and not roles.groups and roles.task.split is None:
            split = SplitPlan("key", None, f"{split.column} is the only column to learn from, so rows are split by key")
            inputs = plan_inputs(profile, data, reserved, label_plan.num_classes, shape)
    if not inputs.inputs:
        raise _no_input_error(profile, inputs, reserved, data)
    inputs, checkpoint = read_by_checkpoint(inputs, roles.checkpoint)
    num_quarantined = count_quarantined(profile, label_plan, data, split, series, inputs)
    num_kept = profile.num_rows + profile.num_malformed - num_quarantined
    _require_rows(num_kept, profile, data, label_plan)
    num_usable_rows, keep_duplicates = num_kept, True
    leaks: tuple[Leak, ...] = ()
    if series is not None:
        num_usable_rows = min(series.num_windows, num_kept)
    else:
        num_usable_rows, keep_duplicates = _count_usable(profile, scratch, num_kept, [*inputs.columns, roles.label])
        is_regression = label_plan.task == "regression"
        if label_plan.sets is None and label_plan.tags is None:
            leaks = find_leaks(profile, scratch, inputs.columns, roles.label, is_regression=is_regression)
    return DraftPlan(
        profile=profile,
        label=label_plan,
        key=key_plan,
        inputs=inputs,
        num_usable_rows=num_usable_rows,
        num_quarantined=num_quarantined,
        keep_duplicates=keep_duplicates,
        split=split,
        leaks=leaks,
        task=task,
        series=series,
        checkpoint=checkpoint,
    )


def _count_usable(profile: SourceProfile, scratch: Path, num_kept: int, columns: Sequence[str]) -> tuple[int, bool]:
    """Returns how many rows are left to learn from, and whether copies are among them."""
    is_wide = len(columns) > _MAX_COMPARED_COLUMNS
    num_distinct = profile.num_rows if is_wide else count_distinct_rows(scratch, columns)
    keep_duplicates = is_wide or num_distinct < 0.5 * profile.num_rows
    return (num_kept if keep_duplicates else min(num_kept, num_distinct)), keep_duplicates


def _find_given_split(
    profile: SourceProfile, data: DataSource, roles: ColumnRoles, reserved: Collection[str]
) -> GivenSplit | None:
    """Returns the column that names the split of each row: that of the files, or one of the source."""
    if data.sources is not None:
        _require_no_order(roles)
        return GivenSplit(profile.columns[-1], {})
    is_required = roles.task.split == "given"
    return find_split_column(profile, reserved, roles.task.split_column, is_required=is_required)


def _require_no_order(roles: ColumnRoles) -> None:
    """Raises DataUnfit where the user requests another split than that of the files."""
    request = roles.task
    if request.task == "forecasting" or request.split is not None or roles.time is not None or roles.groups:
        raise DataUnfit(
            "the files name the splits, so rows cannot be split in another way, and windows would begin anew in each",
            required="one --data with all rows",
            where="--task, --split, --time or --group",
            remedy="join the files, or omit these options",
        )


def _plan_task(
    profile: SourceProfile, data: DataSource, scratch: Path, roles: ColumnRoles, reserved: tuple[str, ...]
) -> tuple[TaskChoice, SeriesPlan | None]:
    """Returns the task, and the series where a forecast is requested or the label has nothing but its past."""
    request, label = roles.task, profile.existing_column(roles.label)
    if roles.tags is not None:
        return TaskChoice("tagging", is_forecast=False, reason=roles.tags.reason), None
    if roles.sets is not None:
        return TaskChoice("multilabel", is_forecast=False, reason=roles.sets.reason), None
    kind = IMAGES if data.kind in ("numpy", "huggingface") and has_images(profile, data) else data.kind
    task = infer_label_task(label, kind, request.task)
    if request.is_inferred:
        task = task._replace(reason="several labels are all classes or all numbers; --task states which")
    columns = SeriesRequest(label, roles.time, roles.groups, request, reserved)
    if task.is_forecast:
        return task, plan_series(profile, scratch, columns)
    is_open = request.task is None and request.split is None and data.sources is None and may_be_forecast(label)
    if is_open and is_bare_series(profile, roles.label, scratch, reserved):
        with contextlib.suppress(DataUnfit):
            series = plan_series(profile, scratch, columns)
            reason = f"beside {label.name} are only its time and names of series; --task regression for single rows"
            return TaskChoice("regression", is_forecast=True, reason=reason), series
    return task, None


def _plan_label(
    profile: SourceProfile, scratch: Path, roles: ColumnRoles, split_column: str | None, task: TaskChoice
) -> LabelPlan:
    column = profile.existing_column(roles.label)
    if roles.tags is not None:
        return plan_tags(roles.tags, column)
    if roles.sets is not None:
        return plan_sets(roles.sets, column)
    label = plan_label(column, scratch, split_column, task.label_task)
    if roles.others:
        return add_labels(label, map(profile.existing_column, roles.others), scratch, split_column, task.label_task)
    return order_classes(label, roles.task.order) if task.label_task == "ordinal" else label


def find_label_sets(
    profile: SourceProfile, data: DataSource, scratch: Path, names: dict[str, str], roles: ColumnRoles
) -> tuple[SourceProfile, ColumnRoles, InferredNumbers]:
    """Returns profile and roles with the sets of labels in one column, and the option that reads them.

    Where the label is no set, they are unchanged. A new column is added to `names`.

    Raises:
        DataMissing: there is no such column.
        DataUnfit: sets are requested, and there are none.
        RecipeInvalid: another task is requested for several labels.
    """
    roles = replace(roles, labels=split_names(roles.labels, names))
    if roles.labels:
        roles = replace(roles, label=roles.labels[0])
    if len(roles.labels) > 1 and roles.separator is None:
        columns = [profile.existing_column(find_column(label, names, "--label")) for label in roles.labels]
        roles = replace(roles, task=infer_task_of_labels(roles.task, columns))
        if roles.task.task in ("regression", "classification"):
            return profile, replace(roles, labels=(), others=roles.labels[1:]), InferredNumbers({}, {})
    for where, is_given in (("--label", len(roles.labels) > 1), ("--label-separator", roles.separator is not None)):
        if is_given:
            require_task_of_sets(roles.task, where)
    if not roles.requests_sets and roles.task.task is not None:
        return profile, roles, InferredNumbers({}, {})
    named = roles.find_columns(names)
    labels, separator = named.labels or (named.label,), named.separator
    collected = collect_label_sets(profile, data, scratch, labels, separator, is_requested=named.requests_sets)
    if collected is None:
        return profile, roles, InferredNumbers({}, {})
    sets = collected.sets
    names.setdefault(sets.column, sets.column)
    return collected.profile, replace(named, label=sets.column, labels=(), sets=sets), sets.reading_options(names)


def _plan_split(
    profile: SourceProfile,
    scratch: Path,
    label: LabelPlan,
    roles: ColumnRoles,
    reserved: tuple[str, ...],
    given: GivenSplit | None,
) -> SplitPlan:
    """Returns the split of rows that are no series."""
    if given is not None and not given.parts:
        return SplitPlan("given", given.column.name, "the split of each file is given")
    if len(roles.groups) > 1 or (roles.groups and roles.time is not None):
        raise DataUnfit(
            f"the rows cannot be split by {' and '.join([*roles.groups, *filter(None, [roles.time])])} at once",
            required="one column, or --task forecasting",
            where="--group",
            remedy="give one --group or --time",
        )
    request = SplitRequest(roles.task.split, roles.time, next(iter(roles.groups), None))
    for kind, column in (("time", request.time), ("group", request.group)):
        if column is not None and request.kind not in (None, kind):
            raise DataUnfit(
                f"the rows cannot be split by {request.kind} and by {column} at once",
                required="options that name one split",
                where=f"--split {request.kind}",
                remedy=f"omit --split or --{kind}",
            )
    notes: tuple[str, ...] = ()
    if given is not None and request in (SplitRequest(), SplitRequest("given")):
        given_split = plan_given_split(given, label, scratch, is_requested=request.kind == "given")
        if isinstance(given_split, SplitPlan):
            return given_split
        notes = (given_split,)
    split = plan_split(profile, scratch, label, request, reserved)
    return split._replace(notes=(*notes, *split.notes))


def _no_input_error(profile: SourceProfile, inputs: InputPlan, reserved: dict[str, str], data: DataSource) -> DataUnfit:
    unread = {name: why for name, why in inputs.unused.items() if name not in reserved} | profile.left_out
    reasons = "; ".join(f"{name}: {why}" for name, why in unread.items())
    return DataUnfit(
        f"no column is left to learn from ({reasons or 'there are only label and key'})",
        required="at least one column of numbers, categories, dates, text or an array beside the label",
        where=data.description,
        remedy="choose data with more columns, or another --label or --delimiter",
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
