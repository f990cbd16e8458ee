"""Plans the split: by time where the rows have one, by entity where entities repeat, otherwise by a hash of the key.

Each plan is tried on the profiled rows as `prepare` will split them, so that no split is empty or lacks a class.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.splits import SPLITS, hash_threshold
from bloomery.tasks.infrastructure.sql_text import quote_text
from bloomery.tasks.scaffolding.planning.entity_columns import (
    MIN_GROUPS,
    Entity,
    find_entities,
    is_birth_date,
    names_event,
    names_things,
)
from bloomery.tasks.scaffolding.planning.input_planning import split_words
from bloomery.tasks.scaffolding.planning.label_planning import LabelPlan
from bloomery.tasks.scaffolding.planning.task_inference import SplitKind
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.profiling.row_order import RowTable, measure_order

Shares = tuple[float, float, float]
_MIN_SHARE = 0.4  # of the rows that a split should have
_GOOD_SHARE = 0.85  # the same, which another hash of the groups may give
_MAX_MISSING_SHARE = 0.01  # of the rows; more of them without a time or group keep `init` from splitting by it
_MAX_GROUPS_TRIED = 2_000  # with every hash; of more groups few hashes are tried, in SQL
_MAX_UNGROUPED_SHARE = 0.05  # of the rows; more of them without a group keep `init` from splitting by it
_MIN_YEARS = 10  # of a series; fewer are rather categories
_FIRST_SECOND = 800_000_000  # since 1970: in 1995
_SALTS = ("", *map(str, range(1, 100)))
_SALTS_OF_MANY = _SALTS[:5]


class SplitPlan(NamedTuple):
    """How rows are split, with the reason as a clause, and `notes` about splits that were not chosen.

    `shares` are those of train, val and test; None for the usual ones. Rows without a value of `column` are
    quarantined. `replaced` has the source's other names of splits, where they are given.
    """

    by: Literal["key", "group", "time", "given"]
    column: str | None
    reason: str
    shares: Shares | None = None
    salt: str = ""
    notes: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()


class SplitRequest(NamedTuple):
    """The kind of split and its column, by the source's name, as the user requests them; None to infer them."""

    kind: SplitKind | None = None
    time: str | None = None
    group: str | None = None


def usual_shares(num_rows: int) -> Shares:
    """Returns the shares of train, val and test. Of many rows, a tenth is enough for val."""
    return (0.6, 0.2, 0.2) if num_rows < 1_000 else (0.7, 0.1, 0.2)


def plan_split(
    profile: SourceProfile, scratch: Path, label: LabelPlan, request: SplitRequest, reserved: Sequence[str]
) -> SplitPlan:
    """Returns the split of the profiled rows in `scratch`.

    Args:
        reserved: columns that cannot decide a split, such as the label.

    Raises:
        DataUnfit: the requested split is not possible.
    """
    if request.kind == "key":
        return SplitPlan("key", None, "as requested")
    shares = usual_shares(profile.num_rows)
    if request.group is not None or request.kind == "group":
        return _require_group_split(profile, scratch, label, request, reserved)
    if request.time is not None or request.kind == "time":
        column = _requested_time(profile, request.time, reserved, scratch)
        problem = _time_problem(column, label, scratch, shares)
        if problem:
            raise _split_error(f"the rows cannot be split by time: {problem}", "--time")
        return SplitPlan("time", column.name, "as requested", shares)
    return _infer_split(profile, scratch, label, reserved)


def _infer_split(profile: SourceProfile, scratch: Path, label: LabelPlan, reserved: Sequence[str]) -> SplitPlan:
    shares = usual_shares(profile.num_rows)
    notes: list[str] = []
    entities = find_entities(profile, reserved)
    times = find_times(profile, reserved)
    for entity in (entity for entity in entities if entity.kind != "object"):
        group_split = _try_group(entity, label, scratch, shares)
        if group_split.by == "group":
            alternative = f"; --time {times[0].name} splits by time instead" if times else ""
            return group_split._replace(reason=group_split.reason + alternative)
        notes += group_split.notes
    for column in sorted(times, key=lambda column: not names_event(column.name)):
        time_split = _try_time(column, label, scratch, shares)
        if time_split.by == "time":
            return time_split._replace(notes=(*notes, *time_split.notes))
        notes += time_split.notes
    for entity in (entity for entity in entities if entity.kind == "object"):
        group_split = _try_group(entity, label, scratch, shares)
        if group_split.by == "group":
            return group_split._replace(notes=(*notes, *group_split.notes))
        notes += group_split.notes
    return SplitPlan("key", None, "a hash of the key decides the split of a row", notes=tuple(notes))


def find_times(profile: SourceProfile, reserved: Sequence[str]) -> list[ColumnProfile]:
    """Returns the columns that are times, without those that are `reserved`."""
    return [column for column in profile.columns if column.name not in reserved and _is_time(column)]


def choose_time(times: Sequence[ColumnProfile], scratch: Path) -> ColumnProfile:
    """Returns a time that says when a row was recorded, if one does; of several, one by which the rows are sorted."""
    return min(times, key=lambda column: (not names_event(column.name), not measure_order(scratch, column).is_ordered))


def _is_time(column: ColumnProfile) -> bool:
    """Whether a column of dates, times, years or seconds since 1970 is nearly complete, and is no date of birth."""
    is_date = column.logical_type in ("date", "timestamp") or is_year(column) or _is_epoch(column)
    has_few_gaps = column.num_missing <= _MAX_MISSING_SHARE * column.num_rows
    return is_date and not column.is_constant and has_few_gaps and not is_birth_date(column.name)


def is_year(column: ColumnProfile) -> bool:
    """Whether whole numbers named `year` are years; those of a thing have another name, or are in no order."""
    low, high = column.minimum, column.maximum
    is_calendar = low is not None and high is not None and low >= 1500 and high <= 2100
    is_named = split_words(column.name) in (["year"], ["calendar", "year"], ["fiscal", "year"])
    return column.logical_type == "integer" and is_named and is_calendar and column.num_distinct >= _MIN_YEARS


def _is_epoch(column: ColumnProfile) -> bool:
    """Whether whole numbers with the name of a time are seconds or milliseconds since 1970, of 1995 or later."""
    low, high = column.minimum, column.maximum
    if column.logical_type != "integer" or low is None or high is None or not names_event(column.name):
        return False
    return any(first <= low and high <= 5 * first for first in (_FIRST_SECOND, 1_000 * _FIRST_SECOND))


def _try_time(column: ColumnProfile, label: LabelPlan, scratch: Path, shares: Shares) -> SplitPlan:
    """Returns the split by a time, or one by key with a note that says what is against it."""
    order = measure_order(scratch, column)
    if order.is_ordered:
        reason = f"the rows are in order of {column.name}"
    elif names_event(column.name) and not is_year(column):
        reason = f"{column.name} says when a row was recorded"
    else:
        if is_year(column):
            return SplitPlan("key", None, "")
        note = f"the rows are not in order of {column.name}; if it says when they were recorded, --time {column.name}"
        return SplitPlan("key", None, "", notes=(note,))
    problem = _time_problem(column, label, scratch, shares)
    if problem:
        return SplitPlan("key", None, "", notes=(f"not by {column.name}: {problem}",))
    forecast = ", --task forecasting predicts later rows from earlier ones" if label.task == "regression" else ""
    reason += f", so later rows are tested; --split key mixes them{forecast}"
    return SplitPlan("time", column.name, reason, shares)


def _time_problem(column: ColumnProfile, label: LabelPlan, scratch: Path, shares: Shares) -> str:
    """Returns what is against a split by time; empty if nothing is."""
    table = RowTable(scratch, _class_columns(label), column)
    part = split_sql(table, shares)
    class_name = table.aliases.get(label.name, "null")
    counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
    for split, value, num in table.query(f"select {part}, {class_name}, count(*) from rows group by 1, 2"):
        counts[split][value] += num
    return _coverage_problem(counts, label, shares)


def split_sql(table: RowTable, shares: Shares) -> str:
    """Returns an expression for the split of a row by its moment; val and test begin where they do for `prepare`."""
    num_rows = table.query("select count(*) from rows")[0][0]
    first_val, first_test = (
        table.query(f"select moment from rows order by 1 limit 1 offset {int(share * num_rows)}")[0][0]
        for share in (shares[0], shares[0] + shares[1])
    )
    return f"case when moment >= {first_test} then 'test' when moment >= {first_val} then 'val' else 'train' end"


def _try_group(
    entity: Entity, label: LabelPlan, scratch: Path, shares: Shares, *, is_requested: bool = False
) -> SplitPlan:
    """Returns the split by a group, or one by key with a note that says what is against it."""
    column = entity.column
    if column.num_missing > _MAX_UNGROUPED_SHARE * column.num_rows and not is_requested:
        problem = f"{column.num_missing:,} rows have none, which --group {column.name} would quarantine"
        note = f"rows of one {column.name} are in several splits: {problem}"
        return SplitPlan("key", None, "", notes=(note,))
    reason = (
        f"{column.num_distinct:,} values of {column.name} are in {column.num_valid:,} rows, and rows of one value "
        "stay in one split; --split key mixes them"
    )
    salt = _find_salt(column, label, scratch, shares)
    if salt is not None:
        return SplitPlan("group", column.name, reason, shares, salt)
    problem = f"its {column.num_distinct:,} values are too few, or too unlike, for three splits"
    note = f"rows of one {column.name} are in several splits: {problem}"
    return SplitPlan("key", None, "", notes=(note,))


def _find_salt(column: ColumnProfile, label: LabelPlan, scratch: Path, shares: Shares) -> str | None:
    """Returns the first salt with which each split has enough rows and classes; None if there is none."""
    if column.num_distinct < MIN_GROUPS:
        return None
    if column.num_distinct > _MAX_GROUPS_TRIED:
        counts_by_salt = [(salt, _count_by_split(scratch, column, label, salt, shares)) for salt in _SALTS_OF_MANY]
        for min_share in (_GOOD_SHARE, _MIN_SHARE):
            for salt, split_counts in counts_by_salt:
                if not _coverage_problem(split_counts, label, shares, min_share):
                    return salt
        return None
    counts = count_by_group(scratch, column, _class_columns(label))
    for min_share in (_GOOD_SHARE, _MIN_SHARE):
        for salt in _SALTS:
            counts_by_split: defaultdict[str, Counter[Any]] = defaultdict(Counter)
            for group, classes in counts.items():
                counts_by_split[split_of_group(group, salt, shares)].update(classes)
            if not _coverage_problem(counts_by_split, label, shares, min_share):
                return salt
    return None


def _count_by_split(
    scratch: Path, column: ColumnProfile, label: LabelPlan, salt: str, shares: Shares
) -> dict[str, Counter[Any]]:
    """Returns the number of rows of each split by class, with groups that are split by a hash with this salt."""
    table = RowTable(scratch, (column, *_class_columns(label)))
    class_name, group = table.aliases.get(label.name, "null"), table.aliases[column.name]
    group_text = f"cast(cast({group} as double) as string)" if column.logical_type == "number" else group
    digest = f"md5('{salt}:' || {group_text})"
    first_val, first_test = (quote_text(hash_threshold(share)) for share in (shares[0], shares[0] + shares[1]))
    part = f"case when {digest} < {first_val} then 'train' when {digest} < {first_test} then 'val' else 'test' end"
    counts: defaultdict[str, Counter[Any]] = defaultdict(Counter)
    query = f"select {part}, {class_name}, count(*) from rows where {group} is not null group by 1, 2"
    for split, value, num in table.query(query):
        counts[split][value] += num
    return counts


def split_of_group(group: str, salt: str, shares: Shares) -> str:
    """Returns the split of a group, as `prepare` computes it in SQL."""
    digest = hashlib.md5(f"{salt}:{group}".encode(), usedforsecurity=False).hexdigest()
    if digest < hash_threshold(shares[0]):
        return "train"
    return "val" if digest < hash_threshold(shares[0] + shares[1]) else "test"


def count_by_group(scratch: Path, column: ColumnProfile, classes: Sequence[ColumnProfile]) -> dict[str, Counter[Any]]:
    """Returns the number of rows of each group by class."""
    table = RowTable(scratch, (column, *classes))
    class_name = table.aliases[classes[0].name] if classes else "null"
    counts: dict[str, Counter[Any]] = defaultdict(Counter)
    condition = f"{table.aliases[column.name]} is not null"
    for group, value, num in table.query(
        f"select {table.aliases[column.name]}, {class_name}, count(*) from rows where {condition} group by 1, 2"
    ):
        counts[_group_text(group, column)][value] += num
    return counts


def _group_text(group: str, column: ColumnProfile) -> str:
    """Returns the text of a group as `prepare` hashes it: numbers are floats there."""
    return f"{float(group):.1f}" if column.logical_type == "number" else group


def _class_columns(label: LabelPlan) -> tuple[ColumnProfile, ...]:
    return () if label.task == "regression" else (label.column,)


def _coverage_problem(
    counts: Mapping[str, Counter[Any]], label: LabelPlan, shares: Shares, min_share: float = _MIN_SHARE
) -> str:
    """Returns which split has too few rows, or lacks a class that is not rare; empty if none does."""
    totals = {split: sum(counts[split].values()) if split in counts else 0 for split in SPLITS}
    num_rows = sum(totals.values())
    for split, share in zip(SPLITS, shares, strict=True):
        if totals[split] < max(min_share * share * num_rows, 1):
            return f"{split} would have {totals[split]:,} of {num_rows:,} rows"
    if label.task == "regression":
        return ""
    classes = label.known_classes(counts["train"])
    for value, _ in label.classes:
        if value not in classes:
            return f"train would have no row of the class {value}"
    for split in ("val", "test"):
        if len(label.known_classes(counts[split]) & classes) < 2:
            return f"{split} would have rows of one class"
    return ""


def _requested_time(profile: SourceProfile, name: str | None, reserved: Sequence[str], scratch: Path) -> ColumnProfile:
    if name is None:
        times = find_times(profile, reserved)
        if not times:
            raise _split_error("no column of dates or times is nearly complete", "--split time")
        return choose_time(times, scratch)
    column = profile.existing_column(name)
    require_time(column)
    return column


def require_time(column: ColumnProfile) -> None:
    """Raises DataUnfit where the values of a column have no order in time."""
    if column.logical_type not in ("date", "timestamp", "integer") or column.is_constant:
        values = "all its values are equal" if column.is_constant else f"its type is {column.logical_type}"
        raise DataUnfit(
            f"column {column.name} cannot order the rows: {values}",
            required="dates, times or whole numbers",
            where="--time",
            remedy="choose another column",
        )


def _require_group_split(
    profile: SourceProfile, scratch: Path, label: LabelPlan, request: SplitRequest, reserved: Sequence[str]
) -> SplitPlan:
    shares = usual_shares(profile.num_rows)
    if request.group is None:
        entities = find_entities(profile, reserved)
        if not entities:
            raise _split_error("no column has the name of an entity with several rows", "--split group")
        entity = entities[0]
    else:
        column = profile.existing_column(request.group)
        if not names_things(column) or column.is_constant:
            raise _split_error(f"column {column.name} of type {column.logical_type} names no groups", "--group")
        entity = Entity(column, "person")
    split = _try_group(entity, label, scratch, shares, is_requested=True)
    if split.by != "group":
        raise _split_error(f"the rows cannot be split by group: {'; '.join(split.notes)}", "--group")
    return split._replace(reason="as requested")


def _split_error(problem: str, where: str) -> DataUnfit:
    return DataUnfit(
        problem,
        required="rows in train, val and test, with every class in train",
        where=where,
        remedy="choose another column with --time or --group, or --split key",
    )
