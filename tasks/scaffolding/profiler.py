"""Profiles a source: its columns with types, limits, missing and distinct values, as the readers of `ingest` read it.

The result does not depend on how the source is cut into batches, and memory is bounded: values are counted one by one
up to a limit, and DuckDB counts exactly beyond it, in a Parquet file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.base import LogicalType
from bloomery.data_contracts.recipe_sections.data_source import DataSource
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

ROWS_FILE, MALFORMED_FILE = "profiled.parquet", "malformed.parquet"


class ColumnProfile(Document):
    """What the rows hold in one column. `value_counts` has the most frequent value first.

    `num_invalid` values are not of the column's type. `value_counts` is None where there are too many distinct values.
    Of an array, minimum and maximum are those of its elements, lengths are numbers of elements, and `length_counts` has
    the number of arrays of each length.
    """

    name: str
    logical_type: LogicalType
    element_type: LogicalType | None = None
    physical_type: str | None = None
    num_rows: int
    num_missing: int
    num_invalid: int = 0
    minimum: int | float | None = None
    maximum: int | float | None = None
    min_length: int | None = None
    max_length: int | None = None
    length_counts: tuple[tuple[int, int], ...] = ()
    value_counts: tuple[tuple[Any, int], ...] | None = None
    num_distinct: int = 0
    is_unique: bool = False
    has_decimal_commas: bool = False

    @property
    def num_valid(self) -> int:
        return self.num_rows - self.num_missing - self.num_invalid

    @property
    def is_constant(self) -> bool:
        return self.num_distinct <= 1


class SourceProfile(Document):
    """The columns of a source. `missing_markers` are texts that mean null; `first_malformed` describes a line."""

    columns: tuple[ColumnProfile, ...]
    num_rows: int
    num_malformed: int
    first_malformed: str = ""
    missing_markers: tuple[str, ...]

    def column(self, name: str) -> ColumnProfile | None:
        return next((column for column in self.columns if column.name == name), None)


def profile_source(data: DataSource, scratch: Path) -> SourceProfile:
    """Returns the profile of the rows of `data`. Afterwards the folder `scratch` holds these rows unchanged.

    Raises:
        DataMissing, EngineMissing: as `ingest` does.
        DataUnfit: there are no rows, or a column has a type that no contract has.
    """
    path = scratch / ROWS_FILE
    with MalformedWriter(scratch / MALFORMED_FILE) as malformed:
        rows = read_sources(data, malformed)
        with RowWriter(path, rows.schema, rows.row_group_size) as writer:
            for batch in rows.batches:
                writer.write(batch)
    first_malformed = _describe_first_malformed(scratch / MALFORMED_FILE)
    if not writer.num_rows:
        raise DataUnfit(
            f"there are no rows, and {malformed.num_lines} malformed lines {first_malformed}".strip(),
            required="rows to learn from",
            where=data.description,
            remedy="choose other data, or set --delimiter, --columns or --format",
        )
    profilers = [_make_profiler(field, writer.num_rows, data) for field in rows.schema]
    for batch in read_batches(path):
        for profiler, column in zip(profilers, batch.columns, strict=True):
            profiler.add(column)
    markers = sorted({text for profiler in profilers for text in profiler.missing_markers()})
    statistics = [profiler.statistics(frozenset(markers)) for profiler in profilers]
    return SourceProfile(
        columns=tuple(
            _profile_column(field.name, writer.num_rows, column, markers, path)
            for field, column in zip(rows.schema, statistics, strict=True)
        ),
        num_rows=writer.num_rows,
        num_malformed=malformed.num_lines,
        first_malformed=first_malformed,
        missing_markers=tuple(markers),
    )


def _describe_first_malformed(path: Path) -> str:
    """Describes the first malformed line; empty if there is none."""
    for batch in read_batches(path):
        for row in batch.slice(0, 1).to_pylist():
            where = row["file"] if row["line"] is None else f"{row['file']}, line {row['line']}"
            return f"first malformed line: {where}: {row['reason']}"
    return ""


def count_distinct_rows(scratch: Path, columns: Sequence[str]) -> int:
    """Returns how many of the profiled rows in `scratch` differ in these columns."""
    names = ", ".join(map(quote_name, columns))
    return int(_query_rows(scratch / ROWS_FILE, f"select count(*) from (select distinct {names} from rows)")[0][0])


def standard_deviation(scratch: Path, column: str) -> float:
    """Returns the standard deviation of the numbers in `column` over the profiled rows in `scratch`."""
    query = f"select stddev_pop(number) from (select try_cast({quote_name(column)} as double) as number from rows)"
    return float(_query_rows(scratch / ROWS_FILE, f"{query} where isfinite(number)")[0][0])


def count_values(scratch: Path, column: str, split: str) -> dict[Any, int]:
    """Returns how many rows of a split have each value of `column`, of the profiled rows in `scratch`."""
    name = quote_name(column)
    query = f"select {name}, count(*) from rows where part = {quote_text(split)} and {name} is not null group by 1"
    return {row[0]: int(row[1]) for row in _query_rows(scratch / ROWS_FILE, query)}


def _query_rows(path: Path, query: str) -> Sequence[Sequence[Any]]:
    with duckdb_session.open_session() as engine:
        engine.execute(f"create view rows as select * from read_parquet({duckdb_session.parquet_path_sql(path)})")
        return engine.sql(query).fetchall()


def _make_profiler(field: pa.Field, num_rows: int, data: DataSource) -> ColumnProfiler:
    arrow_type = field.type
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type):
        element_type = logical_type_of(arrow_type.value_type)
        if element_type is None or element_type in ("date", "timestamp", "array"):
            raise _type_error(field, data)
        return ArrayColumnProfiler(element_type, arrow_type.value_type)
    logical_type = logical_type_of(arrow_type)
    if logical_type is None:
        raise _type_error(field, data)
    if data.is_text:
        return TextColumnProfiler(num_rows)
    return TypedColumnProfiler(logical_type)


def logical_type_of(arrow_type: pa.DataType) -> LogicalType | None:
    """Returns the contract's type for an Arrow type; None where a contract has none."""
    if pa.types.is_boolean(arrow_type):
        return "boolean"
    if pa.types.is_integer(arrow_type):
        return "integer"
    if pa.types.is_floating(arrow_type):
        return "number"
    if pa.types.is_string(arrow_type) or pa.types.is_null(arrow_type):
        return "string"
    if pa.types.is_date(arrow_type):
        return "date"
    return "timestamp" if pa.types.is_timestamp(arrow_type) else None


def _type_error(field: pa.Field, data: DataSource) -> DataUnfit:
    return DataUnfit(
        f"column {field.name} is of type {field.type}",
        required="numbers, text, booleans, dates, timestamps, or arrays of single values",
        where=data.description,
        remedy="remove the column at its source, or write it as one of these types",
    )


def _profile_column(
    name: str, num_rows: int, statistics: ColumnStatistics, missing: Sequence[str], path: Path
) -> ColumnProfile:
    """Returns the profile of a column, with what only DuckDB counts exactly."""
    value_counts = statistics.value_counts
    num_distinct = len(value_counts) if value_counts is not None else statistics.min_distinct
    may_be_unique = statistics.may_be_unique and not statistics.num_missing and not statistics.num_invalid
    if value_counts is None and (statistics.logical_type in ("string", "integer") or may_be_unique):
        num_distinct = _count_distinct(name, missing if statistics.logical_type == "string" else (), path)
    return ColumnProfile(
        name=name,
        logical_type=statistics.logical_type,
        element_type=statistics.element_type,
        physical_type=statistics.physical_type,
        num_rows=num_rows,
        num_missing=statistics.num_missing,
        num_invalid=statistics.num_invalid,
        minimum=statistics.minimum,
        maximum=statistics.maximum,
        min_length=statistics.min_length,
        max_length=statistics.max_length,
        length_counts=statistics.length_counts,
        value_counts=None if value_counts is None else _by_frequency(value_counts),
        num_distinct=num_distinct,
        is_unique=may_be_unique and num_distinct == num_rows,
        has_decimal_commas=statistics.has_decimal_commas,
    )


def _count_distinct(name: str, missing: Sequence[str], path: Path) -> int:
    markers = ", ".join(map(quote_text, missing))
    condition = f" filter (where {quote_name(name)} not in ({markers}))" if markers else ""
    return int(_query_rows(path, f"select count(distinct {quote_name(name)}){condition} from rows")[0][0])


def _by_frequency(counts: Counter[Any]) -> tuple[tuple[Any, int], ...]:
    return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))))
