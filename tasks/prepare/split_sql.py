"""Assigns each row to a split, in SQL for both DuckDB and Spark, and checks that no split leaks into another.

For a series each row also gets its window, which lies inside the row's split, and for a forecast a later row's label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import SeriesInput
from bloomery.models.features.splits import SPLITS, UNLABELLED, Split, hash_threshold
from bloomery.tasks.infrastructure.sql_text import quote_name, quote_text

SPLIT_COLUMN = "_part"
# Rows without a label are of the training split, so they must not share with other splits what it must not.
_LABELLED_SPLIT = f"replace({SPLIT_COLUMN}, {quote_text(UNLABELLED)}, 'train')"
# Runs one query and returns its rows.
RunQuery = Callable[[str], Sequence[Sequence[Any]]]


class EngineFunctions(NamedTuple):
    """The functions whose names differ between the engines."""

    collect: str  # the values {value} of the rows of {window} as an array, with nulls
    microseconds: str  # of a timestamp, since 1970


def columns_read(features: Features) -> tuple[str, ...]:
    """Returns all columns of the validated rows that `prepare` reads, each once."""
    inputs = (column for source in features.inputs for column in source.columns)
    return tuple(
        dict.fromkeys((features.key, features.label, *inputs, *_series_columns(features), *features.split.columns))
    )


def split_query(
    features: Features, contract: Contract, rows: str, run_query: RunQuery, functions: EngineFunctions
) -> str:
    """Returns the query for the rows of the table `rows`, each with its split, and without duplicates if configured.

    The columns of a series hold windows, and rows without a complete window are dropped. The label is in the features'
    `label_column`; rows without the label of a forecast are dropped. If the features use rows without a label, these
    are a split of their own, without the rows that belong to another split than training.

    Raises:
        DataUnfit: the column that names the split holds another value.
    """
    split = features.split
    if features.deduplicate:
        rows = _without_duplicates(features, contract, rows)
    if split.by == "given":
        _require_split_names(split, rows, run_query)
    names = ", ".join(map(quote_name, columns_read(features)))
    part = _split_expression(features, contract, rows, run_query, functions)
    parted = f"select {names}, {part} as {SPLIT_COLUMN} from {rows}"
    if features.unlabelled == "teach":
        return _with_unlabelled(features, names, part, rows)
    return parted if features.series is None else _windows(features, features.series, contract, parted, functions)


def _with_unlabelled(features: Features, names: str, part: str, rows: str) -> str:
    """Returns the query for the rows of the table `rows`: `part` is the split of rows with a label."""
    split = features.split
    # A hash of the key can put any row into any split. Given training rows that it moves to val have no use.
    is_of_train = {"key": "true", "given": f"{quote_name(split.column or '')} = 'train'"}.get(
        split.by, f"{part} = 'train'"
    )
    of_others = f"case when {is_of_train} then {quote_text(UNLABELLED)} end"
    parted = f"case when {quote_name(features.label)} is null then {of_others} else {part} end"
    labelled = f"select {names}, {parted} as {SPLIT_COLUMN} from {rows}"
    return f"select * from ({labelled}) parted where {SPLIT_COLUMN} is not null"


def count_dropped_rows(features: Features, contract: Contract, rows: str, divided: str, run_query: RunQuery) -> int:
    """Returns how many rows of `rows`, without copies, are not in `divided`: they lack a window or a label."""
    if features.series is None and features.unlabelled == "refuse":
        return 0
    if features.deduplicate:
        rows = _without_duplicates(features, contract, rows)
    before, after = (run_query(f"select count(*) from {table}")[0][0] for table in (rows, divided))
    return int(before - after)


def _windows(
    features: Features, series: SeriesInput, contract: Contract, parted: str, functions: EngineFunctions
) -> str:
    """Returns the query for the rows of `parted` that have a complete window, with arrays in the series' columns."""
    alike = ", ".join((*([quote_name(series.group)] if series.group else []), SPLIT_COLUMN))
    past = f"partition by {alike} order by {quote_name(series.time)}, {quote_name(features.key)}"
    window = f"over ({past} rows between {series.length - 1} preceding and current row)"
    steps = f"over ({past} rows between {series.length - 2} preceding and current row)"
    kept = _kept(features)
    found = [f"count(*) {window} as _num", *_later(features, series, contract, past, functions)]
    wanted = [f"_num = {series.length}", *(["_is_reached = 1"] if features.is_forecast else [])]
    if series.spacing is not None:
        moment, unit = _moment(series.time, contract, functions)
        step = f"{moment} - lag({moment}) over ({past}) = {round(series.spacing * unit)}"
        parted = f"select *, case when {step} then 0 else 1 end as _gap from ({parted}) parted"
        found.append(f"sum(_gap) {steps} as _num_gaps")
        wanted.append("_num_gaps = 0")
    others = [quote_name(name) for name in kept if name not in (*series.columns, features.label_column)]
    others += [] if features.is_forecast else [quote_name(features.label)]
    arrays = [
        f"{functions.collect.format(value=quote_name(name), window=window)} as {quote_name(name)}"
        for name in series.columns
    ]
    framed = f"select {', '.join((*others, *arrays, SPLIT_COLUMN, *found))} from ({parted}) spaced"
    return (
        f"select {', '.join(map(quote_name, kept))}, {SPLIT_COLUMN} from ({framed}) framed where {' and '.join(wanted)}"
    )


def _kept(features: Features) -> tuple[str, ...]:
    """Returns the columns of split rows. A row of a forecast has the later row's label instead of its own."""
    if not features.is_forecast:
        return columns_read(features)
    inputs = (column for source in features.inputs for column in source.columns)
    return tuple(
        dict.fromkeys(
            (features.key, features.label_column, *inputs, *_series_columns(features), *features.split.columns)
        )
    )


def _later(
    features: Features, series: SeriesInput, contract: Contract, past: str, functions: EngineFunctions
) -> Iterator[str]:
    """Yields the columns for the label of the row to forecast, and for whether that row and its label exist."""
    if not features.is_forecast:
        return
    label = f"lead({quote_name(features.label)}, {series.horizon}) over ({past})"
    is_reached = f"{label} is not null"
    if series.spacing is not None:
        moment, unit = _moment(series.time, contract, functions)
        ahead = f"lead({moment}, {series.horizon}) over ({past}) - {moment}"
        is_reached = f"{is_reached} and {ahead} = {round(series.horizon * series.spacing * unit)}"
    yield f"{label} as {quote_name(features.label_column)}"
    yield f"case when {is_reached} then 1 else 0 end as _is_reached"


def _moment(time: str, contract: Contract, functions: EngineFunctions) -> tuple[str, int]:
    """Returns a column of times as an integer that cannot overflow, and the number of its units in one of `spacing`."""
    column = contract.column(time)
    kind = None if column is None else column.logical_type
    number, unit = quote_name(time), 1
    if kind == "timestamp":
        number, unit = f"{functions.microseconds}({number})", 1_000_000
    if kind == "date":
        number, unit = f"{functions.microseconds}(cast({number} as timestamp))", 86_400_000_000
    return f"cast({number} as decimal(38, 0))", unit


def _series_columns(features: Features) -> tuple[str, ...]:
    """Returns the columns that give a row's place in its series."""
    if features.series is None:
        return ()
    return (features.series.time, *([features.series.group] if features.series.group else []))


def _without_duplicates(features: Features, contract: Contract, rows: str) -> str:
    """Returns, of rows with equal content, for a series also equal time and group, the one with the least key."""
    content, key = (
        list(dict.fromkeys((*_content(features, features.label), *_series_columns(features)))),
        quote_name(features.key),
    )
    if set(columns_read(features)) == {features.key, *content}:
        # Grouped without a join, which would move all rows again. Minus zero and zero are one group, and an engine
        # keeps either of them: adding zero turns minus zero into zero.
        reals = {column.name for column in contract.columns if column.logical_type == "number"}
        parts = [f"{quote_name(name)} + 0.0" if name in reals else quote_name(name) for name in content]
        named = ", ".join(f"{part} as {quote_name(name)}" for part, name in zip(parts, content, strict=True))
        return f"(select min({key}) as {key}, {named} from {rows} group by {', '.join(parts)}) firsts"
    alike = ", ".join(map(quote_name, content))
    firsts = f"(select min({key}) as {key} from {rows} group by {alike}) firsts"
    return f"(select * from {rows} semi join {firsts} using ({key})) kept"


def require_no_leakage(features: Features, rows: str, run_query: RunQuery) -> None:
    """Checks the split rows in the table `rows`.

    Raises:
        DataUnfit: a split is empty, or two splits share rows, groups or times that they must not share.
    """
    split = features.split
    counted = run_query(f"select {SPLIT_COLUMN}, count(*) from {rows} group by 1")
    counts = dict.fromkeys(SPLITS, 0) | {row[0]: row[1] for row in counted}
    if min(counts.values()) == 0:
        series = features.series
        whole = "" if series is None else f" with a complete window of {series.length}"
        shorter = "" if series is None else "; or shorten the series' windows, or correct their spacing"
        raise DataUnfit(
            f"the splits have {', '.join(f'{counts[part]} {part}' for part in SPLITS)} rows{whole}",
            required="at least one row in every split",
            where=f"features.split by {split.by}",
            remedy=f"provide more rows, or set larger shares for the empty splits in features.split{shorter}",
        )
    for column in split.apart:
        _require_none_shared(
            [column], f"values of {column}", features, rows, run_query, "split by group, with this column"
        )
    # `deduplicate` keeps two groups of a series that are copies of each other.
    if split.duplicates == "refuse" and (not features.deduplicate or features.series is not None):
        remedy = "set `deduplicate: true` in the recipe's features"
        if features.series is not None:
            remedy = "put groups that are copies of each other into one split, or drop one of them"
        remedy += "; or set `split.duplicates: allow`, if they are no copies"
        _require_none_shared(
            _content(features, features.label_column),
            "rows with equal inputs and label",
            features,
            rows,
            run_query,
            remedy,
        )
    if split.in_time is not None:
        _require_order(split.in_time, rows, run_query)


def _content(features: Features, label: str) -> list[str]:
    inputs = (column for source in features.inputs for column in source.columns)
    return list(dict.fromkeys((*inputs, label)))


def _split_expression(
    features: Features, contract: Contract, rows: str, run_query: RunQuery, functions: EngineFunctions
) -> str:
    """Returns the split of a row as an expression."""
    split = features.split
    if split.boundaries is not None:
        moment, _ = _moment(split.column or "", contract, functions)
        first_val, first_test = split.boundaries
        later = f"when {moment} >= {first_val} then 'val' else 'train'"
        return f"case when {moment} >= {first_test} then 'test' {later} end"
    if split.by == "time":
        return _time_split_expression(split, rows, run_query)
    column = split.column if split.by == "group" and split.column else features.key
    hashed = f"md5({quote_text(split.salt + ':')} || cast({quote_name(column)} as string))"
    if split.by == "given":
        given = quote_name(split.column or "")
        has_val = run_query(f"select count(*) from {rows} where {given} = 'val'")[0][0] > 0
        if not has_val and features.series is not None:
            raise DataUnfit(
                f"column {split.column} puts no row into val",
                required="rows in val: a hash that moves rows from train would leave gaps in every series",
                where="features.split by given",
                remedy="put the rows of a time span, or of some groups, into val; or split by time",
            )
        limit = quote_text(hash_threshold(0.0 if has_val else split.val))
        return f"case when {given} = 'train' and {hashed} < {limit} then 'val' else {given} end"
    return (
        f"case when {hashed} < {quote_text(hash_threshold(split.train))} then 'train' "
        f"when {hashed} < {quote_text(hash_threshold(split.train + split.val))} then 'val' else 'test' end"
    )


def _time_split_expression(split: Split, rows: str, run_query: RunQuery) -> str:
    """Returns the split by time. Rows of one moment stay together, in the split of the first of them."""
    column = quote_name(split.column or "")
    num_rows = run_query(f"select count(*) from {rows}")[0][0]
    first_val, first_test = (
        f"(select {column} from {rows} order by 1 limit 1 offset {int(share * num_rows)})"
        for share in (split.train, split.train + split.val)
    )
    return f"case when {column} >= {first_test} then 'test' when {column} >= {first_val} then 'val' else 'train' end"


def _require_split_names(split: Split, rows: str, run_query: RunQuery) -> None:
    given = quote_name(split.column or "")
    known = ", ".join(map(quote_text, SPLITS))
    wrong = run_query(
        f"select distinct cast({given} as string) from {rows} where {given} is null or {given} not in ({known})"
    )
    if wrong:
        raise DataUnfit(
            f"column {split.column} holds {', '.join(sorted(str(row[0]) for row in wrong)[:5])}",
            required=f"one of {', '.join(SPLITS)} in every row",
            where="features.split by given",
            remedy="correct the column at its source, or set another one in features.split.column",
        )


def _require_none_shared(
    names: list[str], what: str, features: Features, rows: str, run_query: RunQuery, remedy: str
) -> None:
    shared = ", ".join(map(quote_name, names))
    key = quote_name(features.key)
    shared_rows = run_query(
        "select count(*), min(first_key), max(last_key) "
        f"from (select min({key}) as first_key, max({key}) as last_key from {rows} "
        f"group by {shared} having min({_LABELLED_SPLIT}) <> max({_LABELLED_SPLIT})) t"
    )
    num, first, last = shared_rows[0]
    if num:
        raise DataUnfit(
            f"{num} {what} are in two splits, such as in the rows with {features.key} {first} and {last}",
            required="splits that share none: else the model is tested on data that it was trained on",
            where=f"features.split by {features.split.by}",
            remedy=remedy,
        )


def _require_order(column: str, rows: str, run_query: RunQuery) -> None:
    moment = quote_name(column)
    ends = run_query(f"select {SPLIT_COLUMN}, min({moment}), max({moment}) from {rows} group by 1")
    first = {part: earliest for part, earliest, _ in ends}
    last = {part: latest for part, _, latest in ends}
    for earlier, later in (("train", "val"), ("val", "test"), ("train", "test")):
        if last[earlier] > first[later]:
            raise DataUnfit(
                f"{later} begins at {first[later]}, before the end of {earlier} at {last[earlier]}",
                required=f"every row of {later} at or after the last of {earlier}",
                where=f"features.split.in_time: {column}",
                remedy="split by time, with this column; or correct the column that names the splits",
            )
