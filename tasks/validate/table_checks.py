"""The rules about the table as a whole: which rows break them, asked of the rows that keep every rule about one row.

DuckDB answers with positions only, and spills what does not fit into its memory.
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
from bloomery.data_contracts.expressions.parser import parse_sql
from bloomery.data_contracts.expressions.table_queries import TABLE_PLACEHOLDER
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.distributions import compute_divergence, count_into_bins
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.validation.expectation_suite import RuleCount
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.duckdb_session import parquet_path_sql
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.sql_text import quote_name
from bloomery.tasks.validate.row_mask import RowMask

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

CLOCK_TOLERANCE_S = 86_400  # how far ahead a moment may be: clocks differ, and a day begins earlier in the east
_POSITION = "file_row_number"
_CONCEALED = "a number about a personal column"


class TableCheck(NamedTuple):
    """What one rule came to: `result`, without examples, and which rows of the file break it, if it is about rows."""

    result: RuleCount
    rows: RowMask | None


class _Table(NamedTuple):
    """The file in DuckDB: `rows` with its columns by name, and `cells` with its columns as c0, c1, … and `position`.

    DuckDB takes two names that differ in case for one; the numbered columns know no names.
    """

    engine: DuckDBPyConnection
    path: Path
    contract: Contract
    num_rows: int

    def cell(self, column: str) -> str:
        names = [known.name for known in self.contract.columns]
        return f"c{names.index(column)}"


def check_table_rules(path: Path, contract: Contract, where: str) -> Iterator[TableCheck]:
    """Every rule of the contract that is about more than one row and their number, asked of the Parquet file.

    Raises:
        ContractBroken: a query cannot be answered, or a column has a name that DuckDB needs.
    """
    rules = [rule for rule in contract.rules() if rule.kind in _COUNTERS]
    if not rules:
        return
    _require_free_names(contract, where)
    with duckdb_session.open_session() as engine:
        table = _Table(engine, path, contract, pq.read_metadata(path).num_rows)
        file, cells = parquet_path_sql(path), ", ".join(f"c{position}" for position in range(len(contract.columns)))
        engine.execute(f"create view {quote_name('rows')} as select * from read_parquet({file})")
        engine.execute(
            f"create view cells({cells}, position) as select * from read_parquet({file}, {_POSITION} = true)"
        )
        for rule in rules:
            yield _COUNTERS[rule.kind](table, rule, where)


def latest_moment(path: Path, column: str) -> datetime | None:
    """The latest moment in a column; that of a date is its beginning in UTC. None where there is none."""
    latest = [pc.max(batch.column(0)) for batch in read_batches(path, [column])]
    moments = [moment.as_py() for moment in latest if moment.is_valid]
    found = max(moments, default=None)
    if found is None or isinstance(found, datetime):
        return found
    return datetime(found.year, found.month, found.day, tzinfo=UTC)


def _require_free_names(contract: Contract, where: str) -> None:
    taken = [column.name for column in contract.columns if column.name.lower() == _POSITION]
    if taken:
        raise ContractBroken(
            f"a column has the name {taken[0]}, which DuckDB gives to the position of a row",
            required="another name, where the contract has rules about the table",
            where=where,
            remedy="give the column another name by `rename` in the recipe's data, and in the contract",
        )


def _not_unique(table: _Table, rule: Rule, where: str) -> TableCheck:
    """All rows whose value another row has too. Where a column of several is null, nothing is compared."""
    cells = [table.cell(name) for name in rule.columns or (rule.target,)]
    names = ", ".join(cells)
    present = " and ".join(f"{cell} is not null" for cell in cells)
    twice = f"select {names} from cells where {present} group by {names} having count(*) > 1"
    return _marked(table, rule, present, f"select position from cells semi join ({twice}) using ({names})")


def _not_determined(table: _Table, rule: Rule, where: str) -> TableCheck:
    """The rows whose target is not the most frequent one for their determining values; all of them where two tie."""
    keys, target = ", ".join(map(table.cell, rule.columns)), table.cell(rule.target)
    present = " and ".join(f"{table.cell(name)} is not null" for name in (*rule.columns, rule.target))
    return _marked(
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


def _marked(table: _Table, rule: Rule, present: str, query: str) -> TableCheck:
    """`query` gives the position of each breaking row, once; the rule is asked of the rows that are `present`."""
    ((num_asked,),) = table.engine.execute(f"select count(*) from cells where {present}").fetchall()
    rows = RowMask(table.num_rows)
    for batch in table.engine.sql(query).to_arrow_reader(_BATCH_ROWS):
        rows.add(batch.column(0).to_numpy())
    return TableCheck(RuleCount(rule, rows.num, num_asked), rows)


def _answer(table: _Table, rule: Rule, where: str) -> TableCheck:
    """The number that the contract's own query gives. One thread, since a sum of floats depends on its order."""
    import duckdb

    is_personal = _reads_personal(rule, table.contract)
    try:
        table.engine.execute("set threads = 1")
        found = table.engine.execute((rule.expression or "").replace(TABLE_PLACEHOLDER, quote_name("rows"))).fetchall()
        number = float(found[0][0]) if found and found[0][0] is not None else None
    except (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError, ValueError, TypeError) as failure:
        # What an engine tells of a conversion may quote the value.
        has_personal = bool(table.contract.personal_columns)
        told = type(failure).__name__ if has_personal else " ".join(str(failure).split("\n\n")[0].split())
        raise ContractBroken(
            f"{rule.target or 'the table'}: {rule.sentence}, but the query has no answer: {told}",
            required="a query that gives one number, whatever the rows",
            where=where,
            remedy="mend the query in the contract; TRY(…) makes null of what fails, and coalesce a number of null",
        ) from (None if has_personal else failure)
    finally:
        table.engine.execute("reset threads")
    return _observed(rule, number, shown=_CONCEALED if is_personal else None)


def _reads_personal(rule: Rule, contract: Contract) -> bool:
    """Whether the query names a personal column, or all columns other than to count rows."""
    from sqlglot import exp

    personal = {name.lower() for name in contract.personal_columns}
    tree = parse_sql((rule.expression or "").replace(TABLE_PLACEHOLDER, "the_object"))
    reads_all = any(not isinstance(star.parent, exp.Count) for star in tree.find_all(exp.Star))
    return bool(personal) and (reads_all or any(one.name.lower() in personal for one in tree.find_all(exp.Column)))


def _age(table: _Table, rule: Rule, where: str) -> TableCheck:
    """The age of the newest moment. One that is yet to come has no age, and tells nothing about that of the data."""
    moment = latest_moment(table.path, rule.target)
    if moment is None:
        return _observed(rule, None)
    age_s = (datetime.now(UTC) - moment).total_seconds()
    is_personal = rule.target in table.contract.personal_columns
    told = f"{moment.isoformat(sep=' ', timespec='seconds')}{', which is yet to come' if age_s < -CLOCK_TOLERANCE_S else ''}"  # noqa: E501
    return _observed(rule, age_s if age_s >= -CLOCK_TOLERANCE_S else None, shown=_CONCEALED if is_personal else told)


def _divergence(table: _Table, rule: Rule, where: str) -> TableCheck:
    stated = table.contract.references[rule.reference or ""].columns[rule.target]
    counts = [count_into_bins(stated, batch.column(0)) for batch in read_batches(table.path, [rule.target])]
    if not counts or rule.divergence is None:
        return _observed(rule, None)
    return _observed(rule, compute_divergence(rule.divergence, stated, functools.reduce(operator.add, counts)))


def _observed(rule: Rule, number: float | None, shown: str | None = None) -> TableCheck:
    """A rule about one number. Where there is no number, it is not kept."""
    is_broken = number is None or not rule.allows(number)
    told = shown if shown is not None else "no value" if number is None else f"{number:.10g}"
    return TableCheck(RuleCount(rule, int(is_broken), 1, (), told), None)


_BATCH_ROWS = 100_000
_COUNTERS: dict[str, Callable[[_Table, Rule, str], TableCheck]] = {
    "unique": _not_unique,
    "determined": _not_determined,
    "query": _answer,
    "fresh": _age,
    "distribution": _divergence,
}
