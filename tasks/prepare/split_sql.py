"""Assigns each row to a split, in SQL for both DuckDB and Spark, and checks that no split leaks into another.

For a series each row also gets its window, which lies inside the row's split, and for a forecast a later row's label.
Tables of rows, given and returned, have the columns of the data under their aliases (`column_alias`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import SeriesInput
from bloomery.models.features.splits import SPLITS, UNLABELLED, Split, hash_threshold
from bloomery.tasks.infrastructure.sql_text import column_alias, quote_text

SPLIT_COLUMN = "_part"
# Rows without a label are of the training split, so they must not share with other splits what it must not.
_LABELLED_SPLIT = f"replace({SPLIT_COLUMN}, {quote_text(UNLABELLED)}, 'train')"
# Runs one query and returns its rows.
RunQuery = Callable[[str], Sequence[Sequence[Any]]]


class EngineFunctions(NamedTuple):
    """The SQL functions that have different names in the two engines."""

    collect: str  # the values {value} of the rows of {window} as an array, with nulls
    microseconds: str  # of a timestamp, since 1970
    sort_set: str  # the elements of the array {value} in order and each once, without nulls
    make_array: str  # the array of {values}
    text: str  # the type of texts


def columns_read(features: Features) -> tuple[str, ...]:
    """Returns all columns of the validated rows that `prepare` reads, each once."""
    inputs = (column for source in features.inputs for column in source.columns)
    return tuple(
        dict.fromkeys(
            (features.key, *features.label_columns, *inputs, *_series_columns(features), *features.split.columns)
        )
    )


def _joined_columns(features: Features) -> tuple[str, ...]:
    """Returns the columns of the rows after `_with_joined_labels`, each once."""
    if features.labels is None:
        return columns_read(features)
    others = (name for name in columns_read(features) if name not in features.label_columns)
    return (*others, features.label_column)


def names_by_alias(features: Features) -> dict[str, str]:
    """Returns the names of the split rows' columns, by alias; the split's own column is not among them."""
    return {column_alias(name): name for name in (*columns_read(features), features.label_column)}


def split_query(
    features: Features, contract: Contract, rows: str, run_query: RunQuery, functions: EngineFunctions
) -> str:
    """Returns the query for the rows of the table `rows`, each with its split, and without duplicates if configured.

    The columns of a series hold windows, and rows without a complete window are dropped. The label is in the features'
    `label_column`; rows without the label of a forecast are dropped. If the features use rows without a label, these
    form a separate split, except rows that belong to val or test.

    Raises:
        DataUnfit: the column that names the split holds a value that is not the name of a split.
    """
    split = features.split
    rows = _with_joined_labels(features, _with_sorted_sets(features, rows, functions), functions)
    if features.deduplicate:
        rows = _without_duplicates(features, contract, rows)
    if split.by == "given":
        _require_split_names(split, rows, run_query)
    names = ", ".join(map(column_alias, _joined_columns(features)))
    split_expression = _split_expression(features, contract, rows, run_query, functions)
    query = f"select {names}, {split_expression} as {SPLIT_COLUMN} from {rows}"
    if features.unlabelled == "teach":
        return _with_unlabelled(features, names, split_expression, rows)
    return query if features.series is None else _window_query(features, features.series, contract, query, functions)


def _with_unlabelled(features: Features, names: str, split_expression: str, rows: str) -> str:
    """Returns the query for the rows of the table `rows`: `split_expression` gives the split of a row with a label."""
    split = features.split
    # A hash of the key would assign unlabelled rows to all splits, where only train has a use for them.
    is_of_train = {"key": "true", "given": f"{column_alias(split.column or '')} = 'train'"}.get(
        split.by, f"{split_expression} = 'train'"
    )
    unlabelled_expression = f"case when {is_of_train} then {quote_text(UNLABELLED)} end"
    is_unlabelled = f"{column_alias(features.label)} is null"
    expression = f"case when {is_unlabelled} then {unlabelled_expression} else {split_expression} end"
    query = f"select {names}, {expression} as {SPLIT_COLUMN} from {rows}"
    return f"select * from ({query}) split_rows where {SPLIT_COLUMN} is not null"


def count_dropped_rows(
    features: Features, contract: Contract, rows: str, split_rows: str, run_query: RunQuery, functions: EngineFunctions
) -> int:
    """Returns how many rows of `rows`, without copies, are not in `split_rows`: they lack a window or a label."""
    if features.series is None and features.unlabelled == "refuse" and features.labels is None:
        return 0
    if features.labels is None:
        rows = _with_sorted_sets(features, rows, functions)
    else:
        rows = _with_joined_labels(features, rows, functions, keeps_unlabelled=True)
    if features.deduplicate:
        rows = _without_duplicates(features, contract, rows)
    before, after = (run_query(f"select count(*) from {table}")[0][0] for table in (rows, split_rows))
    return int(before - after)


def _window_query(
    features: Features, series: SeriesInput, contract: Contract, query: str, functions: EngineFunctions
) -> str:
    """Returns the query for the rows of `query` that have a complete window, with arrays in the series' columns."""
    partition = ", ".join((*map(column_alias, series.groups), SPLIT_COLUMN))
    series_order = f"partition by {partition} order by {column_alias(series.time)}, {column_alias(features.key)}"
    window = f"over ({series_order} rows between {series.length - 1} preceding and current row)"
    steps_window = f"over ({series_order} rows between {series.length - 2} preceding and current row)"
    names = _split_row_columns(features)
    computed_columns = [
        f"count(*) {window} as _num",
        *_forecast_columns(features, series, contract, series_order, functions),
    ]
    conditions = [f"_num = {series.length}", *(["_is_reached = 1"] if features.is_forecast else [])]
    if series.spacing is not None:
        moment, unit = _moment(series.time, contract, functions)
        step = f"{moment} - lag({moment}) over ({series_order}) = {round(series.spacing * unit)}"
        query = f"select *, case when {step} then 0 else 1 end as _gap from ({query}) split_rows"
        computed_columns.append(f"sum(_gap) {steps_window} as _num_gaps")
        conditions.append("_num_gaps = 0")
    plain_columns = [column_alias(name) for name in names if name not in (*series.columns, features.label_column)]
    plain_columns += [] if features.is_forecast else [column_alias(features.label)]
    arrays = [
        f"{functions.collect.format(value=column_alias(name), window=window)} as {column_alias(name)}"
        for name in series.columns
    ]
    selected = ", ".join((*plain_columns, *arrays, SPLIT_COLUMN, *computed_columns))
    window_query = f"select {selected} from ({query}) split_rows"
    columns, condition = ", ".join(map(column_alias, names)), " and ".join(conditions)
    return f"select {columns}, {SPLIT_COLUMN} from ({window_query}) windows where {condition}"


def _split_row_columns(features: Features) -> tuple[str, ...]:
    """Returns the columns of split rows. In a forecast, the label of the later row replaces the row's own label."""
    if not features.is_forecast:
        return columns_read(features)
    inputs = (column for source in features.inputs for column in source.columns)
    return tuple(
        dict.fromkeys(
            (features.key, features.label_column, *inputs, *_series_columns(features), *features.split.columns)
        )
    )


def _forecast_columns(
    features: Features, series: SeriesInput, contract: Contract, series_order: str, functions: EngineFunctions
) -> Iterator[str]:
    """Yields the columns for the label of the row to forecast, and for whether that row and its label exist."""
    if not features.is_forecast:
        return
    label = f"lead({column_alias(features.label)}, {series.horizon}) over ({series_order})"
    has_label = f"{label} is not null"
    if series.spacing is not None:
        moment, unit = _moment(series.time, contract, functions)
        time_ahead = f"lead({moment}, {series.horizon}) over ({series_order}) - {moment}"
        has_label = f"{has_label} and {time_ahead} = {round(series.horizon * series.spacing * unit)}"
    yield f"{label} as {column_alias(features.label_column)}"
    yield f"case when {has_label} then 1 else 0 end as _is_reached"


def _moment(time: str, contract: Contract, functions: EngineFunctions) -> tuple[str, int]:
    """Returns a column of times as an integer expression that cannot overflow, and its units per unit of `spacing`."""
    column = contract.column(time)
    kind = None if column is None else column.logical_type
    number, unit = column_alias(time), 1
    if kind == "timestamp":
        number, unit = f"{functions.microseconds}({number})", 1_000_000
    if kind == "date":
        number, unit = f"{functions.microseconds}(cast({number} as timestamp))", 86_400_000_000
    return f"cast({number} as decimal(38, 0))", unit


def _series_columns(features: Features) -> tuple[str, ...]:
    """Returns the columns that give a row's place in its series."""
    if features.series is None:
        return ()
    return (features.series.time, *features.series.groups)


def _with_sorted_sets(features: Features, rows: str, functions: EngineFunctions) -> str:
    """Returns a table expression in which equal sets of labels are equal arrays, whatever the order of the labels."""
    if features.task != "multilabel":
        return rows
    label = column_alias(features.label)
    names = (column_alias(name) for name in columns_read(features))
    sorted_set = f"{functions.sort_set.format(value=label)} as {label}"
    select_list = ", ".join(sorted_set if name == label else name for name in names)
    return f"(select {select_list} from {rows}) sorted_rows"


def _with_joined_labels(
    features: Features, rows: str, functions: EngineFunctions, *, keeps_unlabelled: bool = False
) -> str:
    """Returns a table expression with several labels as one array, without the rows that have none of them."""
    if features.labels is None:
        return rows
    labels = [column_alias(name) for name in features.labels]
    type_name = "double" if features.task == "multioutput" else functions.text
    values = ", ".join(f"cast({label} as {type_name})" for label in labels)
    array = f"{functions.make_array.format(values=values)} as {column_alias(features.label_column)}"
    names = [column_alias(name) for name in columns_read(features) if name not in features.label_columns]
    condition = "true" if keeps_unlabelled else " or ".join(f"{label} is not null" for label in labels)
    return f"(select {', '.join([*names, array])} from {rows} where {condition}) labelled_rows"


def _without_duplicates(features: Features, contract: Contract, rows: str) -> str:
    """Returns a table expression that keeps, of rows with equal content, the row with the smallest key.

    In a series, copies also have equal time and group.
    """
    content = list(dict.fromkeys((*_content(features, _content_label(features)), *_series_columns(features))))
    key = column_alias(features.key)
    if set(_joined_columns(features)) == {features.key, *content}:
        # Grouped without a join, which would move all rows again. Minus zero and zero are one group, and an engine
        # keeps either of them: adding zero turns minus zero into zero.
        number_columns = {column.name for column in contract.columns if column.logical_type == "number"}
        aliases = {name: column_alias(name) for name in content}
        expressions = [f"{alias} + 0.0" if name in number_columns else alias for name, alias in aliases.items()]
        select_list = ", ".join(
            f"{expression} as {alias}" for expression, alias in zip(expressions, aliases.values(), strict=True)
        )
        return f"(select min({key}) as {key}, {select_list} from {rows} group by {', '.join(expressions)}) firsts"
    column_list = ", ".join(map(column_alias, content))
    firsts = f"(select min({key}) as {key} from {rows} group by {column_list}) firsts"
    return f"(select * from {rows} semi join {firsts} using ({key})) distinct_rows"


def require_no_leakage(features: Features, rows: str, run_query: RunQuery) -> None:
    """Checks the split rows in the table `rows`.

    Raises:
        DataUnfit: a split is empty, or two splits share rows, groups or times that they must not share.
    """
    split = features.split
    result = run_query(f"select {SPLIT_COLUMN}, count(*) from {rows} group by 1")
    counts = dict.fromkeys(SPLITS, 0) | {row[0]: row[1] for row in result}
    if min(counts.values()) == 0:
        series = features.series
        window_text = "" if series is None else f" with a complete window of {series.length}"
        window_hint = "" if series is None else "; or shorten the series' windows, or correct their spacing"
        raise DataUnfit(
            f"the splits have {', '.join(f'{counts[name]} {name}' for name in SPLITS)} rows{window_text}",
            required="at least one row in every split",
            where=f"features.split by {split.by}",
            remedy=f"provide more rows, or set larger shares for the empty splits in features.split{window_hint}",
        )
    for column in split.apart:
        _require_disjoint_splits(
            [column], f"values of {column}", features, rows, run_query, "split by group, with this column"
        )
    # `deduplicate` keeps two groups of a series that are copies of each other.
    if split.duplicates == "refuse" and (not features.deduplicate or features.series is not None):
        remedy = "set `deduplicate: true` in the recipe's features"
        if features.series is not None:
            remedy = "put groups that are copies of each other into one split, or drop one of them"
        remedy += "; or set `split.duplicates: allow`, if they are no copies"
        _require_disjoint_splits(
            _content(features, features.label_column),
            "rows with equal inputs and label",
            features,
            rows,
            run_query,
            remedy,
        )
    if split.in_time is not None:
        _require_order(split.in_time, rows, run_query)


def _content_label(features: Features) -> str:
    """Returns the label's column before windows are built."""
    return features.label if features.labels is None else features.label_column


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
    key_hash = f"md5({quote_text(split.salt + ':')} || cast({column_alias(column)} as string))"
    if split.by == "given":
        split_column = column_alias(split.column or "")
        has_val = run_query(f"select count(*) from {rows} where {split_column} = 'val'")[0][0] > 0
        if not has_val and features.series is not None:
            raise DataUnfit(
                f"column {split.column} puts no row into val",
                required="rows in val: a hash that moves rows from train would leave gaps in every series",
                where="features.split by given",
                remedy="put the rows of a time span, or of some groups, into val; or split by time",
            )
        limit = quote_text(hash_threshold(0.0 if has_val else split.val))
        return f"case when {split_column} = 'train' and {key_hash} < {limit} then 'val' else {split_column} end"
    return (
        f"case when {key_hash} < {quote_text(hash_threshold(split.train))} then 'train' "
        f"when {key_hash} < {quote_text(hash_threshold(split.train + split.val))} then 'val' else 'test' end"
    )


def _time_split_expression(split: Split, rows: str, run_query: RunQuery) -> str:
    """Returns the split by time. Rows of one moment stay together, in the split of the first of them."""
    column = column_alias(split.column or "")
    num_rows = run_query(f"select count(*) from {rows}")[0][0]
    first_val, first_test = (
        f"(select {column} from {rows} order by 1 limit 1 offset {int(share * num_rows)})"
        for share in (split.train, split.train + split.val)
    )
    return f"case when {column} >= {first_test} then 'test' when {column} >= {first_val} then 'val' else 'train' end"


def _require_split_names(split: Split, rows: str, run_query: RunQuery) -> None:
    split_column = column_alias(split.column or "")
    valid_names = ", ".join(map(quote_text, SPLITS))
    condition = f"{split_column} is null or {split_column} not in ({valid_names})"
    invalid_values = run_query(f"select distinct cast({split_column} as string) from {rows} where {condition}")
    if invalid_values:
        raise DataUnfit(
            f"column {split.column} holds {', '.join(sorted(str(row[0]) for row in invalid_values)[:5])}",
            required=f"one of {', '.join(SPLITS)} in every row",
            where="features.split by given",
            remedy="correct the column at its source, or set another one in features.split.column",
        )


def _require_disjoint_splits(
    names: list[str], what: str, features: Features, rows: str, run_query: RunQuery, remedy: str
) -> None:
    column_list = ", ".join(map(column_alias, names))
    key = column_alias(features.key)
    shared_rows = run_query(
        "select count(*), min(first_key), max(last_key) "
        f"from (select min({key}) as first_key, max({key}) as last_key from {rows} "
        f"group by {column_list} having min({_LABELLED_SPLIT}) <> max({_LABELLED_SPLIT})) t"
    )
    num, first, last = shared_rows[0]
    if num:
        raise DataUnfit(
            f"{num} {what} are in two splits, for example in the rows with {features.key} {first} and {last}",
            required="splits that share none: else the model is tested on data that it was trained on",
            where=f"features.split by {features.split.by}",
            remedy=remedy,
        )


def _require_order(column: str, rows: str, run_query: RunQuery) -> None:
    moment = column_alias(column)
    ends = run_query(f"select {SPLIT_COLUMN}, min({moment}), max({moment}) from {rows} group by 1")
    first = {split: earliest for split, earliest, _ in ends}
    last = {split: latest for split, _, latest in ends}
    for earlier, later in (("train", "val"), ("val", "test"), ("train", "test")):
        if last[earlier] > first[later]:
            raise DataUnfit(
                f"{later} begins at {first[later]}, before the end of {earlier} at {last[earlier]}",
                required=f"every row of {later} at or after the last of {earlier}",
                where=f"features.split.in_time: {column}",
                remedy="split by time, with this column; or correct the column that names the splits",
            )
