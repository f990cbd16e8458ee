"""Checks the rules about the table as a whole, on the rows that keep every rule about one row.

DuckDB returns the positions of rows only, and spills what does not fit into its memory.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.errors import ContractBroken
from bloomery.data_contracts.expressions.sql import parse_sql, quote_name
from bloomery.data_contracts.expressions.table_queries import TABLE_PLACEHOLDER, adapt_names, query_names
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.distributions import compute_divergence, count_into_bins
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.validation.expectation_suite import RuleCount
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.duckdb_session import parquet_path_sql
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.sql_text import column_alias
from bloomery.tasks.validate.row_mask import RowMask

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CLOCK_TOLERANCE_S = 86_400  # how far in the future a moment may be: clocks differ, and a day begins earlier in the east
_POSITION = "file_row_number"
_CONCEALED = "a number about a personal column"


class TableCheck(NamedTuple):
    """The result of one rule: its counts, without examples, and which rows break it, if the rule is about rows."""

    result: RuleCount
    rows: RowMask | None


class _Table(NamedTuple):
    """The file in DuckDB: the view `cells` has its columns under their aliases, and `position`.

    A check of a query adds the view `rows`, with the columns under the names that queries use (`query_names`).
    """

    engine: DuckDBPyConnection
    path: Path
    contract: Contract
    num_rows: int


def check_table_rules(path: Path, contract: Contract, where: str) -> Iterator[TableCheck]:
    """Yields the check of each rule about more than one row, other than their number, on the Parquet file.

    Raises:
        ContractBroken: a query fails.
    """
    rules = [rule for rule in contract.rules() if rule.kind in _CHECKS]
    if not rules:
        return
    with duckdb_session.open_session() as engine:
        table = _Table(engine, path, contract, pq.read_metadata(path).num_rows)
        cells = ", ".join(map(column_alias, pq.read_schema(path).names))
        engine.execute(
            f"create view cells as select {cells}, {_POSITION} as position "
            f"from read_parquet({parquet_path_sql(path)}) as file({cells})"
        )
        for rule in rules:
            yield _CHECKS[rule.kind](table, rule, where)


def latest_moment(path: Path, column: str) -> datetime | None:
    """Returns the latest moment in a column; None without values. A date counts from its start in UTC."""
    latest = [pc.max(batch.column(0)) for batch in read_batches(path, [column])]
    moments = [moment.as_py() for moment in latest if moment.is_valid]
    newest = max(moments, default=None)
    if newest is None or isinstance(newest, datetime):
        return newest
    return datetime(newest.year, newest.month, newest.day, tzinfo=UTC)


def _check_unique(table: _Table, rule: Rule, where: str) -> TableCheck:
    """Finds all rows that share their values with another row. Rows with a null in one of the columns do not count."""
    cells = [column_alias(name) for name in rule.columns or (rule.target,)]
    names = ", ".join(cells)
    present = " and ".join(f"{cell} is not null" for cell in cells)
    duplicates = f"select {names} from cells where {present} group by {names} having count(*) > 1"
    return _check_rows(table, rule, present, f"select position from cells semi join ({duplicates}) using ({names})")


def _check_determined(table: _Table, rule: Rule, where: str) -> TableCheck:
    """Finds rows without the most frequent target for their determining values; on a tie, all rows of these values."""
    keys, target = ", ".join(map(column_alias, rule.columns)), column_alias(rule.target)
    present = " and ".join(f"{column_alias(name)} is not null" for name in (*rule.columns, rule.target))
    return _check_rows(
        table,
        rule,
        present,
        f"""
        with counted as (select {keys}, {target}, count(*) as num from cells where {present} group by {keys}, {target}),
        ranked as (select *, max(num) over of_key as most, count(*) over of_key as num_values
                   from counted window of_key as (partition by {keys})),
        wrong as (select *, sum((num = most)::int) over (partition by {keys}) as num_most from ranked
                  where num_values > 1)
        select position from cells
        semi join (select {keys}, {target} from wrong where num < most or num_most > 1) using ({keys}, {target})
        """,
    )


def _check_rows(table: _Table, rule: Rule, present: str, query: str) -> TableCheck:
    """Checks the rows that satisfy `present`. The query returns the position of each row that breaks the rule, once."""
    ((num_checked,),) = table.engine.execute(f"select count(*) from cells where {present}").fetchall()
    rows = RowMask(table.num_rows)
    for batch in table.engine.sql(query).to_arrow_reader(_BATCH_ROWS):
        rows.add(batch.column(0).to_numpy())
    return TableCheck(RuleCount(rule, rows.num_set, num_checked), rows)


def _check_query(table: _Table, rule: Rule, where: str) -> TableCheck:
    """Checks the number that the contract's own query returns, in one thread: a sum of floats depends on its order."""
    import duckdb

    is_personal = _reads_personal(rule, table.contract)
    names = [column.name for column in table.contract.columns]
    columns, file = ", ".join(map(quote_name, query_names(names).values())), parquet_path_sql(table.path)
    query = adapt_names(rule.expression or "", names)
    try:
        table.engine.execute("set threads = 1")
        table.engine.execute(f"create or replace view rows({columns}) as select * from read_parquet({file})")
        result = table.engine.execute(query.replace(TABLE_PLACEHOLDER, "rows")).fetchall()
        number = float(result[0][0]) if result and result[0][0] is not None else None
    except (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError, ValueError, TypeError) as failure:
        # An engine's message about a conversion may contain the value.
        has_personal = bool(table.contract.personal_columns)
        message = type(failure).__name__ if has_personal else " ".join(str(failure).split("\n\n")[0].split())
        raise ContractBroken(
            f"{rule.target or 'the table'}: {rule.sentence}, but the query fails: {message}",
            required="a query that returns one number, whatever the rows",
            where=where,
            remedy="correct the query in the contract; TRY(…) turns a failure into null, "
            "and coalesce(…) turns null into a number",
        ) from (None if has_personal else failure)
    finally:
        table.engine.execute("reset threads")
    return _check_number(rule, number, text=_CONCEALED if is_personal else None)


def _reads_personal(rule: Rule, contract: Contract) -> bool:
    """Whether the query names a personal column, or reads all columns for more than counting rows."""
    from sqlglot import exp

    personal = {name.lower() for name in contract.personal_columns}
    tree = parse_sql((rule.expression or "").replace(TABLE_PLACEHOLDER, "the_object"))
    reads_all = any(not isinstance(star.parent, exp.Count) for star in tree.find_all(exp.Star))
    return bool(personal) and (
        reads_all or any(column.name.lower() in personal for column in tree.find_all(exp.Column))
    )


def _check_age(table: _Table, rule: Rule, where: str) -> TableCheck:
    """Checks the age of the latest moment. A moment in the future has no age."""
    moment = latest_moment(table.path, rule.target)
    if moment is None:
        return _check_number(rule, None)
    age_s = (datetime.now(UTC) - moment).total_seconds()
    is_personal = rule.target in table.contract.personal_columns
    is_future = age_s < -CLOCK_TOLERANCE_S
    text = f"{moment.isoformat(sep=' ', timespec='seconds')}{', which is in the future' if is_future else ''}"
    return _check_number(rule, None if is_future else age_s, text=_CONCEALED if is_personal else text)


def _check_divergence(table: _Table, rule: Rule, where: str) -> TableCheck:
    reference = table.contract.references[rule.reference or ""].columns[rule.target]
    counts = [count_into_bins(reference, batch.column(0)) for batch in read_batches(table.path, [rule.target])]
    if not counts or rule.divergence is None:
        return _check_number(rule, None)
    return _check_number(rule, compute_divergence(rule.divergence, reference, functools.reduce(operator.add, counts)))


def _check_number(rule: Rule, number: float | None, text: str | None = None) -> TableCheck:
    """Checks a rule about one number. Without a number the rule is broken."""
    is_broken = number is None or not rule.allows(number)
    observed = text if text is not None else "no value" if number is None else f"{number:.10g}"
    return TableCheck(RuleCount(rule, int(is_broken), 1, (), observed), None)


_BATCH_ROWS = 100_000
_CHECKS: dict[str, Callable[[_Table, Rule, str], TableCheck]] = {
    "unique": _check_unique,
    "determined": _check_determined,
    "query": _check_query,
    "fresh": _check_age,
    "distribution": _check_divergence,
}
