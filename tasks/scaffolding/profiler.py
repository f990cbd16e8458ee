"""What is in a source: its columns with types, limits, missing and different values, as the readers of `ingest` see it.

Nothing depends on how the source was cut into batches, and memory is bounded: values are counted one by one up to a
limit, and what is exact beyond it is asked of a Parquet file by DuckDB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.columns import LogicalType
from bloomery.data_contracts.recipe_sections.data_source import Data
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches
from bloomery.tasks.infrastructure.sql_text import quote_name, quote_text
from bloomery.tasks.ingest.readers.base import MalformedWriter
from bloomery.tasks.ingest.stage import read_sources
from bloomery.tasks.scaffolding.column_profiles import (
    ArrayColumnProfiler,
    ColumnProfiler,
    ColumnStatistics,
    TextColumnProfiler,
    TypedColumnProfiler,
)

SCRATCH_FILE, MALFORMED_FILE = "profiled.parquet", "malformed.parquet"


class ColumnProfile(Document):
    """What was seen of one column. `num_unfit` values are not of its kind; `values` are counted, most frequent first.

    `values` is None where there are more than can be counted one by one. Of an array, the limits are those of its
    elements, the lengths are numbers of elements, and `lengths` counts them.
    """

    name: str
    kind: LogicalType
    element: LogicalType | None = None
    physical: str | None = None
    num_rows: int
    num_missing: int
    num_unfit: int = 0
    low: int | float | None = None
    high: int | float | None = None
    min_length: int | None = None
    max_length: int | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    values: tuple[tuple[Any, int], ...] | None = None
    num_distinct: int = 0
    is_unique: bool = False
    is_decimal_comma: bool = False

    @property
    def num_present(self) -> int:
        return self.num_rows - self.num_missing - self.num_unfit

    @property
    def is_constant(self) -> bool:
        return self.num_distinct <= 1


class SourceProfile(Document):
    """What was seen of a source. `missing` are texts that mean null, `malformed` the first line that is no row."""

    columns: tuple[ColumnProfile, ...]
    num_rows: int
    num_malformed: int
    malformed: str = ""
    missing: tuple[str, ...]

    def column(self, name: str) -> ColumnProfile | None:
        return next((column for column in self.columns if column.name == name), None)


def profile_source(data: Data, scratch: Path) -> SourceProfile:
    """The profile of the rows that `data` names, which lie in the folder `scratch` afterwards, as they came.

    Raises:
        DataMissing, EngineMissing: as `ingest` does.
        DataUnfit: there are no rows, or a column has a type that no contract knows.
    """
    path = scratch / SCRATCH_FILE
    with MalformedWriter(scratch / MALFORMED_FILE) as malformed:
        rows = read_sources(data, malformed)
        with RowWriter(path, rows.schema, rows.row_group_size) as writer:
            for batch in rows.batches:
                writer.write(batch)
    if not writer.num_rows:
        raise DataUnfit(
            f"there is no row ({malformed.num_lines} lines are none) {_first(scratch / MALFORMED_FILE)}".strip(),
            required="rows to learn from",
            where=data.described,
            remedy="give other data, or state --delimiter, --columns or --format",
        )
    sightings = [_sighting(field, writer.num_rows, data) for field in rows.schema]
    for batch in read_batches(path):
        for sighting, column in zip(sightings, batch.columns, strict=True):
            sighting.add(column)
    missing = sorted({text for sighting in sightings for text in sighting.markers()})
    figures = [sighting.figures(frozenset(missing)) for sighting in sightings]
    return SourceProfile(
        columns=tuple(
            _seen(field.name, writer.num_rows, one, missing, path)
            for field, one in zip(rows.schema, figures, strict=True)
        ),
        num_rows=writer.num_rows,
        num_malformed=malformed.num_lines,
        malformed=_first(scratch / MALFORMED_FILE),
        missing=tuple(missing),
    )


def _first(path: Path) -> str:
    """The first line that is no row, in a sentence; empty where there is none."""
    for batch in read_batches(path):
        for row in batch.slice(0, 1).to_pylist():
            place = row["file"] if row["line"] is None else f"{row['file']}, line {row['line']}"
            return f"the first, {place}: {row['reason']}"
    return ""


def count_distinct_rows(scratch: Path, columns: Sequence[str]) -> int:
    """How many rows differ in these columns, of the rows that were profiled into `scratch`."""
    named = ", ".join(map(quote_name, columns))
    return int(_ask(scratch / SCRATCH_FILE, f"select count(*) from (select distinct {named} from rows)")[0][0])


def standard_deviation(scratch: Path, column: str) -> float:
    """The standard deviation of the figures in `column`, of the rows that were profiled into `scratch`."""
    query = f"select stddev_pop(figure) from (select try_cast({quote_name(column)} as double) as figure from rows)"
    return float(_ask(scratch / SCRATCH_FILE, f"{query} where isfinite(figure)")[0][0])


def count_values(scratch: Path, column: str, part: str) -> dict[Any, int]:
    """How many rows of a part have each value of `column`, of the rows that were profiled into `scratch`."""
    named = quote_name(column)
    query = f"select {named}, count(*) from rows where part = {quote_text(part)} and {named} is not null group by 1"
    return {row[0]: int(row[1]) for row in _ask(scratch / SCRATCH_FILE, query)}


def _ask(path: Path, query: str) -> Sequence[Sequence[Any]]:
    with duckdb_session.open_session() as engine:
        engine.execute(f"create view rows as select * from read_parquet({duckdb_session.parquet_path_sql(path)})")
        return engine.sql(query).fetchall()


def _sighting(field: pa.Field, num_rows: int, data: Data) -> ColumnProfiler:
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = logical_type_of(kind.value_type)
        if element is None or element in ("date", "timestamp", "array"):
            raise _unknown_type(field, data)
        return ArrayColumnProfiler(element, kind.value_type)
    known = logical_type_of(kind)
    if known is None:
        raise _unknown_type(field, data)
    if data.is_text:
        return TextColumnProfiler(num_rows)
    return TypedColumnProfiler(known)


def logical_type_of(kind: pa.DataType) -> LogicalType | None:
    """The contract's word for an Arrow type; None where it has none."""
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_null(kind):
        return "string"
    if pa.types.is_date(kind):
        return "date"
    return "timestamp" if pa.types.is_timestamp(kind) else None


def _unknown_type(field: pa.Field, data: Data) -> DataUnfit:
    return DataUnfit(
        f"column {field.name} is of type {field.type}",
        required="numbers, text, truth values, dates, times, or arrays of single values",
        where=data.described,
        remedy="leave the column out at its source, or write it as one of these",
    )


def _seen(name: str, num_rows: int, figures: ColumnStatistics, missing: Sequence[str], path: Path) -> ColumnProfile:
    """The figures of a column, with what only the whole column tells."""
    num_distinct = len(figures.values) if figures.values is not None else figures.least_distinct
    may_be_unique = figures.may_be_unique and not figures.num_missing and not figures.num_unfit
    if figures.values is None and (figures.kind in ("string", "integer") or may_be_unique):
        words = ", ".join(map(quote_text, missing)) if figures.kind == "string" else ""
        kept = f" filter (where {quote_name(name)} not in ({words}))" if words else ""
        with duckdb_session.open_session() as engine:
            source = f"read_parquet({duckdb_session.parquet_path_sql(path)})"
            query = f"select count(distinct {quote_name(name)}){kept} from {source}"
            num_distinct = int(engine.sql(query).fetchall()[0][0])
    counted = None if figures.values is None else _most_first(figures.values)
    return ColumnProfile(
        name=name,
        kind=figures.kind,
        element=figures.element,
        physical=figures.physical,
        num_rows=num_rows,
        num_missing=figures.num_missing,
        num_unfit=figures.num_unfit,
        low=figures.low,
        high=figures.high,
        min_length=figures.min_length,
        max_length=figures.max_length,
        lengths=figures.lengths,
        values=counted,
        num_distinct=num_distinct,
        is_unique=may_be_unique and num_distinct == num_rows,
        is_decimal_comma=figures.is_decimal_comma,
    )


def _most_first(values: Counter[Any]) -> tuple[tuple[Any, int], ...]:
    return tuple(sorted(values.items(), key=lambda one: (-one[1], str(one[0]))))
