"""Plans a forecast: the time that orders the rows, the columns that name a series, the window and the horizon."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.tasks.scaffolding.planning.input_planning import (
    CALENDAR_WORDS,
    InputPlan,
    PlannedInput,
    is_code,
    is_row_number,
    split_words,
)
from bloomery.tasks.scaffolding.planning.split_planning import (
    Shares,
    SplitPlan,
    choose_time,
    find_times,
    require_time,
    split_sql,
    usual_shares,
)
from bloomery.tasks.scaffolding.planning.task_inference import TaskRequest
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.profiling.row_order import MICROSECONDS_PER_DAY, RowTable

_MAX_GROUP_COLUMNS = 8  # columns that may name a series, which are tried alone and in pairs
_MAX_REPEATED_SHARE = 0.005  # of the rows that may have the time of another row of their series
_MAX_REQUESTED_SHARE = 0.05  # the same where the user names the columns
_MIN_REGULAR_SHARE = 0.5  # of the windows that must stay if rows are required to be equally far apart
_MIN_USUAL_SHARE = 0.6  # of the steps in time of a table that is taken for series without a request
_MIN_STEPS = 30  # moments of all rows
# Rows in a window, by the longest step in days: a day of hours, two weeks of days, a quarter of weeks, a year of months
_LAGS = ((1 / 48, 30), (0.5, 24), (4, 14), (20, 13), (62, 12), (200, 8), (math.inf, 5))


class SeriesRequest(NamedTuple):
    """The columns of a forecast that the user names, by the source's names, and what else the user requests."""

    label: ColumnProfile
    time: str | None
    groups: tuple[str, ...]
    task: TaskRequest
    reserved: tuple[str, ...]  # columns that a series cannot read, such as the key


class SeriesPlan(NamedTuple):
    """A forecast: the columns by the source's names. `reason` says how windows are made; `notes` what to look at.

    `spacing` is in seconds, days or units of the time; None where the rows are not equally far apart.
    `num_windows` is about the number of rows that get a complete window and a label.
    """

    time: ColumnProfile
    groups: tuple[str, ...]
    length: int
    horizon: int
    spacing: int | None
    shares: Shares
    num_windows: int
    reason: str
    notes: tuple[str, ...] = ()

    @property
    def split(self) -> SplitPlan:
        reason = f"later rows of {self.time.name} are tested, and no window reaches from one split into another"
        return SplitPlan("time", self.time.name, reason, self.shares)


class _Series(NamedTuple):
    """All series in one table: the columns that name them, how many there are, and the usual step in time."""

    table: RowTable
    aliases: tuple[str, ...]
    time: ColumnProfile
    num_series: int
    num_moments: int
    usual_step: int

    @property
    def shares(self) -> Shares:
        """The shares of train, val and test."""
        return usual_shares(self.num_moments)

    @property
    def usual_days(self) -> float:
        """The usual step in days; 1 where the time is a whole number."""
        return self.usual_step / MICROSECONDS_PER_DAY if self.time.logical_type != "integer" else 1.0

    def over(self, column: str) -> str:
        """Returns a window function over one series in order of time."""
        partition = f"partition by {', '.join(self.aliases)} " if self.aliases else ""
        return f"{column} over ({partition}order by moment)"


def plan_series(profile: SourceProfile, scratch: Path, request: SeriesRequest) -> SeriesPlan:
    """Returns the forecast of the label in the profiled rows in `scratch`.

    Raises:
        DataUnfit: no column orders the rows, the columns do not tell series apart, or a series is too short.
    """
    time = _choose_time(profile, scratch, request)
    groups, notes = _choose_groups(profile, scratch, request, time)
    series = _measure_series(scratch, [column for column in profile.columns if column.name in groups], time)
    horizon = request.task.horizon or 1
    length = _choose_length(series, horizon, request.task.lags)
    spacing, num_windows = _choose_spacing(series, length, horizon)
    if spacing is None:
        notes = (*notes, f"{_describe_steps(series)}, so lags and horizon count rows")
    named_series = f"{series.num_series:,} series by {' and '.join(groups)}" if groups else "one series"
    rows = "row" if horizon == 1 else "rows"
    reason = (
        f"{named_series} in order of {time.name}; the last {length} rows predict {request.label.name} {horizon} {rows} "
        "later; --lags, --horizon, --time and --group change this"
    )
    return SeriesPlan(time, groups, length, horizon, spacing, series.shares, num_windows, reason, notes)


def _describe_steps(series: _Series) -> str:
    days = series.usual_days
    periods = ((28, 31, "months"), (90, 92, "quarters"), (365, 366, "years"))
    names = [name for shortest, longest, name in periods if shortest <= days <= longest]
    return f"{names[0]} are not equally long" if names else "the rows are not equally far apart"


def is_bare_series(profile: SourceProfile, label: str, scratch: Path, reserved: Sequence[str]) -> bool:
    """Whether a label can be predicted from its past alone: beside it are a time, names of series and the calendar.

    Rows must be about equally far apart: single events, such as the ratings of users, are no series.
    """
    times = find_times(profile, reserved)
    if len(times) != 1:
        return False
    others = [column for column in profile.columns if column.name not in (label, times[0].name, *reserved)]
    others = [column for column in others if not (column.is_constant or _is_of_calendar(column))]
    others = [column for column in others if not is_row_number(column)]
    if len(others) > 2 or any(column.num_missing or not _may_name_series(column) for column in others):
        return False
    table = RowTable(scratch, others, times[0])
    aliases = list(table.aliases.values())
    fewer = [[], *([alias] for alias in aliases)] if len(aliases) > 1 else [[]] if aliases else []
    if _count_repeated(table, aliases)[1] or not all(_count_repeated(table, names)[1] for names in fewer):
        return False
    series = _measure_series(scratch, others, times[0])
    usual = series.usual_step
    steps = f"select moment - {series.over('lag(moment)')} as step from rows"
    num_steps, num_usual = series.table.query(
        f"select count(step), count(*) filter (where step between {0.9 * usual} and {1.15 * usual}) from ({steps})"
    )[0]
    return series.num_moments >= _MIN_STEPS and num_usual >= _MIN_USUAL_SHARE * num_steps


def _is_of_calendar(column: ColumnProfile) -> bool:
    return bool(CALENDAR_WORDS & set(split_words(column.name)))


def _may_name_series(column: ColumnProfile) -> bool:
    """Whether the values of a column are names or codes with several rows each."""
    is_name = column.logical_type == "string" or (column.logical_type == "integer" and is_code(column))
    return is_name and 1 < column.num_distinct <= column.num_valid / 2


def _choose_time(profile: SourceProfile, scratch: Path, request: SeriesRequest) -> ColumnProfile:
    if request.time is not None:
        column = profile.existing_column(request.time)
        require_time(column)
        return column
    times = find_times(profile, request.reserved)
    if not times:
        dates = ", ".join(column.name for column in profile.columns if column.logical_type in ("date", "timestamp"))
        raise DataUnfit(
            f"no column orders the rows in time ({dates or 'none has dates or times'})",
            required="a column of dates, times or whole numbers without gaps",
            where="--task forecasting",
            remedy="name it with --time; if dates are in several columns, join them first",
        )
    return choose_time(times, scratch)


def _choose_groups(
    profile: SourceProfile, scratch: Path, request: SeriesRequest, time: ColumnProfile
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the columns that name a series, and notes: as few as leave no time twice in a series."""
    if request.groups:
        columns = [column for column in profile.columns if column.name in request.groups]
        return request.groups, _check_groups(scratch, columns, time)
    excluded = (*request.reserved, request.label.name, time.name)
    candidates = [column for column in profile.columns if column.name not in excluded and not column.num_missing]
    candidates = [column for column in candidates if _may_name_series(column) and not _is_of_calendar(column)]
    candidates = sorted(candidates, key=lambda column: (column.logical_type == "string", column.num_distinct))
    candidates = candidates[:_MAX_GROUP_COLUMNS]
    table = RowTable(scratch, candidates, time)
    choices: list[tuple[ColumnProfile, ...]] = [
        (),
        *itertools.combinations(candidates, 1),
        *itertools.combinations(candidates, 2),
    ]
    for choice in choices:
        num_rows, num_repeated = _count_repeated(table, [table.aliases[column.name] for column in choice])
        if num_repeated <= _MAX_REPEATED_SHARE * num_rows:
            return tuple(column.name for column in choice), _describe_repeated(num_repeated)
    raise _repeated_error(_count_repeated(table, [])[1], time, [column.name for column in candidates])


def _check_groups(scratch: Path, columns: Sequence[ColumnProfile], time: ColumnProfile) -> tuple[str, ...]:
    for column in columns:
        if column.logical_type not in ("integer", "string"):
            raise DataUnfit(
                f"column {column.name} cannot name a series: its type is {column.logical_type}",
                required="texts or whole numbers",
                where="--group",
                remedy="choose another column",
            )
    table = RowTable(scratch, columns, time)
    num_rows, num_repeated = _count_repeated(table, list(table.aliases.values()))
    if num_repeated > _MAX_REQUESTED_SHARE * num_rows:
        raise _repeated_error(num_repeated, time, [column.name for column in columns])
    return _describe_repeated(num_repeated)


def _describe_repeated(num_repeated: int) -> tuple[str, ...]:
    return (f"{num_repeated:,} rows have the time of another row of their series",) if num_repeated else ()


def _repeated_error(num_repeated: int, time: ColumnProfile, names: Sequence[str]) -> DataUnfit:
    return DataUnfit(
        f"{num_repeated:,} rows have the same {time.name} as another row"
        + (f" of {', '.join(names)}" if names else ""),
        required="one row for each time of a series",
        where="--group",
        remedy="name the columns that tell series apart with --group, such as --group store,item; or sum up the rows",
    )


def _count_repeated(table: RowTable, aliases: Sequence[str]) -> tuple[int, int]:
    """Returns the number of rows, and how many have the time of another row of their series."""
    names = ", ".join((*aliases, "moment"))
    query = f"select coalesce(sum(num), 0), count(*) from (select count(*) as num from rows group by {names})"
    num_rows, num_distinct = table.query(query)[0]
    return int(num_rows), int(num_rows) - int(num_distinct)


def _measure_series(scratch: Path, groups: Sequence[ColumnProfile], time: ColumnProfile) -> _Series:
    table = RowTable(scratch, groups, time)
    series = _Series(table, tuple(table.aliases.values()), time, 1, 0, 1)
    steps = f"select moment - {series.over('lag(moment)')} as step from rows"
    counts = table.query(f"select step, count(*) from ({steps}) where step > 0 group by 1 order by 2 desc, 1 limit 1")
    names = ", ".join(series.aliases) or "1"
    num_series, num_moments = table.query(
        f"select (select count(*) from (select distinct {names} from rows)), count(distinct moment) from rows"
    )[0]
    return series._replace(
        num_series=num_series, num_moments=num_moments, usual_step=int(counts[0][0]) if counts else 1
    )


def _choose_length(series: _Series, horizon: int, requested: int | None) -> int:
    """Returns the rows in a window: those of a usual season, if every split has enough rows for several windows."""
    part = split_sql(series.table, series.shares)
    names = ", ".join((part, *series.aliases))
    sizes = f"select {part} as part, count(*) as num from rows group by {names}"
    medians = series.table.query(f"select median(num) from ({sizes}) group by part")
    num_rows = int(min(row[0] for row in medians)) if len(medians) == 3 else 0
    if requested is not None and requested + horizon <= num_rows:
        return requested
    longest = (num_rows - horizon + 1) // 2 if requested is None else 0
    if longest < 2:
        lags = f"{requested} lags and " if requested is not None else ""
        raise DataUnfit(
            f"the shortest split has {num_rows} rows of a series, and {lags}a horizon of {horizon} needs more",
            required="in train, val and test as many rows of a series as lags and horizon together",
            where="--lags" if requested is not None else "--horizon",
            remedy="provide longer series, or choose fewer --lags or a smaller --horizon",
        )
    usual = next(lags for longest_step, lags in _LAGS if series.usual_days <= longest_step)
    return max(min(usual, longest), 2)


def _choose_spacing(series: _Series, length: int, horizon: int) -> tuple[int | None, int]:
    """Returns the spacing of the rows, or None where too few windows would have it, and the number of windows."""
    num_steps = length - 1 + horizon
    ahead = f"{series.over(f'lead(moment, {num_steps})')} - moment as ahead"
    is_regular = f"ahead = {series.usual_step * num_steps}"
    num_windows, num_regular = series.table.query(
        f"select count(ahead), count(*) filter (where {is_regular}) from (select {ahead} from rows)"
    )[0]
    num_lost = 2 * series.num_series * num_steps  # where val and test begin
    unit = {"date": MICROSECONDS_PER_DAY, "timestamp": 1_000_000}.get(series.time.logical_type, 1)
    if num_regular < _MIN_REGULAR_SHARE * num_windows or series.usual_step % unit:
        return None, max(num_windows - num_lost, 1)
    return series.usual_step // unit, max(num_regular - num_lost, 1)


def plan_series_inputs(
    profile: SourceProfile, plan: SeriesPlan, label: ColumnProfile, reserved: dict[str, str]
) -> InputPlan:
    """Returns the windows as the single input, and why the other columns are not read."""
    unused = {**reserved, plan.time.name: "it orders the rows"}
    unused |= dict.fromkeys(plan.groups, "it names the series")
    columns: list[ColumnProfile] = []
    if label.logical_type in ("integer", "number"):
        columns.append(label)
        unused.pop(label.name, None)
    for column in profile.columns:
        if column.name == label.name or column.name in unused:
            continue
        reason = _reason_against(column)
        if reason is None:
            columns.append(column)
        else:
            unused[column.name] = reason
    options: dict[str, object] = {
        "kind": "series",
        "columns": [column.name for column in columns],
        "time": plan.time.name,
        **({"group": plan.groups[0] if len(plan.groups) == 1 else list(plan.groups)} if plan.groups else {}),
        "length": plan.length,
        **({"spacing": plan.spacing} if plan.spacing is not None else {}),
        "horizon": plan.horizon,
    }
    if any(column.num_missing for column in columns):
        options |= {"missing": "previous", "indicator": True}
    inputs = (PlannedInput(options, plan.reason),) if columns else ()
    return InputPlan(inputs, unused)


def _reason_against(column: ColumnProfile) -> str | None:
    """Returns why a series does not read a column; None where it does."""
    if not column.num_valid:
        return "it has no values"
    if column.is_constant:
        return "all its values are equal"
    if column.logical_type not in ("integer", "number"):
        return "a series reads numbers"
    if column.num_distinct > 2 and is_code(column):
        return "its numbers are codes, and a series reads quantities"
    return "it numbers the rows" if is_row_number(column) else None
