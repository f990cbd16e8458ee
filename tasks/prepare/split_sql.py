"""Which part each row belongs to, in SQL that DuckDB and Spark read alike, and what the parts must not share.

For a series each row also gets its window, which lies inside the row's part, and for a forecast a later row's label.
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
# Rows without a label are taken from the training part, and must not share with others what it must not.
_PART_OF_THREE = f"replace({SPLIT_COLUMN}, {quote_text(UNLABELLED)}, 'train')"
# Answers one query with its rows.
RunQuery = Callable[[str], Sequence[Sequence[Any]]]


class EngineFunctions(NamedTuple):
    """The functions that an engine has under a name of its own."""

    collect: str  # the values {value} of the rows of {window} as an array, nulls too
    microseconds: str  # of a timestamp, since 1970


def columns_read(features: Features) -> tuple[str, ...]:
    """All columns of the checked rows that preparing reads, each once."""
    inputs = (column for source in features.inputs for column in source.columns)
    return tuple(dict.fromkeys((features.key, features.label, *inputs, *_place(features), *features.split.columns)))


def split_query(features: Features, contract: Contract, rows: str, ask: RunQuery, functions: EngineFunctions) -> str:
    """The query for the rows of the table `rows`, without duplicates if they are not wanted, each with its part.

    The columns of a series hold windows there, and rows without a whole window are left out. The label stands in the
    features' `label_column`; rows without the label of a forecast are left out too. Where rows without a label are
    wanted, they are a part of their own, and those that the split keeps apart from the training part are left out.

    Raises:
        DataUnfit: a column that gives the part holds something else.
    """
    split = features.split
    if features.deduplicate:
        rows = _without_duplicates(features, contract, rows)
    if split.by == "given":
        _require_parts(split, rows, ask)
    names = ", ".join(map(quote_name, columns_read(features)))
    part = _part(features, contract, rows, ask, functions)
    parted = f"select {names}, {part} as {SPLIT_COLUMN} from {rows}"
    if features.unlabelled == "teach":
        return _with_unlabelled(features, names, part, rows)
    return parted if features.series is None else _windows(features, features.series, contract, parted, functions)


def _with_unlabelled(features: Features, names: str, part: str, rows: str) -> str:
    """The query for the rows of the table `rows` that `part` divides if they have a label."""
    split = features.split
    # By a hash of the key any row could be of any part. Rows given to train that a hash takes to val have no use there.
    is_of_train = {"key": "true", "given": f"{quote_name(split.column or '')} = 'train'"}.get(
        split.by, f"{part} = 'train'"
    )
    of_others = f"case when {is_of_train} then {quote_text(UNLABELLED)} end"
    parted = f"case when {quote_name(features.label)} is null then {of_others} else {part} end"
    return f"select * from (select {names}, {parted} as {SPLIT_COLUMN} from {rows}) parted where {SPLIT_COLUMN} is not null"  # noqa: E501


def count_dropped_rows(features: Features, contract: Contract, rows: str, divided: str, ask: RunQuery) -> int:
    """How many rows of the table `rows`, copies aside, do not stand in `divided`: without a whole window or a label."""
    if features.series is None and features.unlabelled == "refuse":
        return 0
    if features.deduplicate:
        rows = _without_duplicates(features, contract, rows)
    before, after = (ask(f"select count(*) from {table}")[0][0] for table in (rows, divided))
    return int(before - after)


def _windows(
    features: Features, series: SeriesInput, contract: Contract, parted: str, functions: EngineFunctions
) -> str:
    """The rows of the query `parted` that have a whole window, with arrays in the series' columns."""
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
    """The columns of divided rows. A row of a forecast has the later row's label, and its own only for other ends."""
    if not features.is_forecast:
        return columns_read(features)
    inputs = (column for source in features.inputs for column in source.columns)
    return tuple(
        dict.fromkeys((features.key, features.label_column, *inputs, *_place(features), *features.split.columns))
    )


def _later(
    features: Features, series: SeriesInput, contract: Contract, past: str, functions: EngineFunctions
) -> Iterator[str]:
    """The label of the row that a forecast is about, and whether that row and its label are there."""
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
    """A column of times as a whole number that cannot overflow, and how many of it make one unit of `spacing`."""
    column = contract.column(time)
    kind = None if column is None else column.logical_type
    number, unit = quote_name(time), 1
    if kind == "timestamp":
        number, unit = f"{functions.microseconds}({number})", 1_000_000
    if kind == "date":
        number, unit = f"{functions.microseconds}(cast({number} as timestamp))", 86_400_000_000
    return f"cast({number} as decimal(38, 0))", unit


def _place(features: Features) -> tuple[str, ...]:
    """The columns that say where in which series a row stands."""
    if features.series is None:
        return ()
    return (features.series.time, *([features.series.group] if features.series.group else []))


def _without_duplicates(features: Features, contract: Contract, rows: str) -> str:
    """Of rows with equal content, for a series also of equal time and group, the one with the least key."""
    content, key = (
        list(dict.fromkeys((*_content(features, features.label), *_place(features)))),
        quote_name(features.key),
    )
    if set(columns_read(features)) == {features.key, *content}:
        # Grouped as they are, since a join would move all rows once more. Minus zero and zero are one group, of which
        # an engine keeps either: adding zero leaves the latter.
        reals = {column.name for column in contract.columns if column.logical_type == "number"}
        parts = [f"{quote_name(name)} + 0.0" if name in reals else quote_name(name) for name in content]
        named = ", ".join(f"{part} as {quote_name(name)}" for part, name in zip(parts, content, strict=True))
        return f"(select min({key}) as {key}, {named} from {rows} group by {', '.join(parts)}) firsts"
    alike = ", ".join(map(quote_name, content))
    firsts = f"(select min({key}) as {key} from {rows} group by {alike}) firsts"
    return f"(select * from {rows} semi join {firsts} using ({key})) kept"


def require_no_leakage(features: Features, rows: str, ask: RunQuery) -> None:
    """Check the divided rows in the table `rows`.

    Raises:
        DataUnfit: a part is empty, or rows, groups or times stand in two parts that must not.
    """
    split = features.split
    counted = ask(f"select {SPLIT_COLUMN}, count(*) from {rows} group by 1")
    counts = dict.fromkeys(SPLITS, 0) | {row[0]: row[1] for row in counted}
    if min(counts.values()) == 0:
        series = features.series
        whole = "" if series is None else f" with a whole window of {series.length}"
        shorter = "" if series is None else "; or make the series' windows shorter, or their spacing what it is"
        raise DataUnfit(
            f"the parts have {', '.join(f'{counts[part]} {part}' for part in SPLITS)} rows{whole}",
            required="at least one row in every part",
            where=f"features.split by {split.by}",
            remedy=f"bring more rows, or larger shares for the empty parts in the recipe's features.split{shorter}",
        )
    for column in split.apart:
        _require_none_shared([column], f"values of {column}", features, rows, ask, "split by group, with this column")
    # Two groups of a series may be copies of each other, which `deduplicate` leaves.
    if split.duplicates == "refuse" and (not features.deduplicate or features.series is not None):
        mend = "say `deduplicate: true` in the recipe's features"
        if features.series is not None:
            mend = "give groups that are copies of each other to one part, or drop one of them"
        remedy = f"{mend}; or say `split.duplicates: allow`, if they are no copies"
        _require_none_shared(
            _content(features, features.label_column), "rows with equal inputs and label", features, rows, ask, remedy
        )
    if split.in_time is not None:
        _require_order(split.in_time, rows, ask)


def _content(features: Features, label: str) -> list[str]:
    inputs = (column for source in features.inputs for column in source.columns)
    return list(dict.fromkeys((*inputs, label)))


def _part(features: Features, contract: Contract, rows: str, ask: RunQuery, functions: EngineFunctions) -> str:
    """The part of a row as an expression."""
    split = features.split
    if split.cuts is not None:
        moment, _ = _moment(split.column or "", contract, functions)
        first_val, first_test = split.cuts
        later = f"when {moment} >= {first_val} then 'val' else 'train'"
        return f"case when {moment} >= {first_test} then 'test' {later} end"
    if split.by == "time":
        return _part_in_time(split, rows, ask)
    column = split.column if split.by == "group" and split.column else features.key
    hashed = f"md5({quote_text(split.salt + ':')} || cast({quote_name(column)} as string))"
    if split.by == "given":
        given = quote_name(split.column or "")
        has_val = ask(f"select count(*) from {rows} where {given} = 'val'")[0][0] > 0
        if not has_val and features.series is not None:
            raise DataUnfit(
                f"column {split.column} gives no row to val",
                required="rows given to val: taken out of train by a hash, they would leave gaps in every series",
                where="features.split by given",
                remedy="give the rows of some span of time, or of some groups, to val; or split by time",
            )
        share = 0.0 if has_val else split.val
        return f"case when {given} = 'train' and {hashed} < {quote_text(hash_threshold(share))} then 'val' else {given} end"  # noqa: E501
    return (
        f"case when {hashed} < {quote_text(hash_threshold(split.train))} then 'train' "
        f"when {hashed} < {quote_text(hash_threshold(split.train + split.val))} then 'val' else 'test' end"
    )


def _part_in_time(split: Split, rows: str, ask: RunQuery) -> str:
    """Rows of one moment stay together: they go where the first of them goes."""
    column = quote_name(split.column or "")
    num_rows = ask(f"select count(*) from {rows}")[0][0]
    first_val, first_test = (
        f"(select {column} from {rows} order by 1 limit 1 offset {int(share * num_rows)})"
        for share in (split.train, split.train + split.val)
    )
    return f"case when {column} >= {first_test} then 'test' when {column} >= {first_val} then 'val' else 'train' end"


def _require_parts(split: Split, rows: str, ask: RunQuery) -> None:
    given = quote_name(split.column or "")
    known = ", ".join(map(quote_text, SPLITS))
    wrong = ask(
        f"select distinct cast({given} as string) from {rows} where {given} is null or {given} not in ({known})"
    )
    if wrong:
        raise DataUnfit(
            f"column {split.column} holds {', '.join(sorted(str(one[0]) for one in wrong)[:5])}",
            required=f"one of {', '.join(SPLITS)} in every row",
            where="features.split by given",
            remedy="mend the column at its source, or name another one in features.split.column",
        )


def _require_none_shared(
    names: list[str], what: str, features: Features, rows: str, ask: RunQuery, remedy: str
) -> None:
    shared = ", ".join(map(quote_name, names))
    key = quote_name(features.key)
    found = ask(
        f"select count(*), min(one), max(other) from (select min({key}) as one, max({key}) as other from {rows} "
        f"group by {shared} having min({_PART_OF_THREE}) <> max({_PART_OF_THREE})) t"
    )
    num, one, other = found[0]
    if num:
        raise DataUnfit(
            f"{num} {what} stand in two parts, such as in the rows with {features.key} {one} and {other}",
            required="parts that share none, or the model is measured on what it has seen",
            where=f"features.split by {features.split.by}",
            remedy=remedy,
        )


def _require_order(column: str, rows: str, ask: RunQuery) -> None:
    moment = quote_name(column)
    ends = ask(f"select {SPLIT_COLUMN}, min({moment}), max({moment}) from {rows} group by 1")
    first = {part: earliest for part, earliest, _ in ends}
    last = {part: latest for part, _, latest in ends}
    for earlier, later in (("train", "val"), ("val", "test"), ("train", "test")):
        if last[earlier] > first[later]:
            raise DataUnfit(
                f"{later} begins at {first[later]}, before the end of {earlier} at {last[earlier]}",
                required=f"every row of {later} at or after the last of {earlier}",
                where=f"features.split.in_time: {column}",
                remedy="split by time, with this column; or mend the column that gives the parts",
            )
