"""Profiles a source: its columns with types, limits, missing and distinct values, as the readers of `ingest` read it.

The result does not depend on how the source is cut into batches, and memory is bounded: values are counted one by one
up to a limit, and DuckDB counts exactly beyond it, in a Parquet file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.odcs.base import LogicalType
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.file_column import FileColumn
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.sql_text import quote_text
from bloomery.tasks.scaffolding.profiling.column_names import matching_names
from bloomery.tasks.scaffolding.profiling.column_profiles import (
    MARKERS,
    ArrayColumnProfiler,
    ColumnProfiler,
    ColumnStatistics,
    TextColumnProfiler,
    TypedColumnProfiler,
)
from bloomery.tasks.scaffolding.profiling.date_inference import FormatCounter, InferredFormat, choose_format
from bloomery.tasks.scaffolding.profiling.number_inference import InferredNumbers
from bloomery.tasks.scaffolding.profiling.sequence_planning import describe_uneven_arrays
from bloomery.tasks.scaffolding.profiling.source_rows import ROWS_FILE, SourceRows, logical_type_of, read_source_rows

_WHOLE_DECIMAL = r"decimal\d+\(\d+, 0\)"  # the type of whole numbers in databases
_MAX_INVALID_SHARE = 0.05  # of the rows; a column with more is left out, since it would quarantine them


class ColumnProfile(Document):
    """The values of one column. `value_counts` has the most frequent value first.

    `num_invalid` values are not of the column's type. `value_counts` is None where there are too many distinct values.
    Of an array, minimum and maximum are those of its elements, lengths are numbers of elements, and `length_counts` has
    the number of arrays of each length. `missing` are the texts that mark a missing value, `date_format` says how dates
    are written if not in ISO 8601, and `source_type` is the type of numbers that are converted. With `names_files`,
    most texts are names of images or recordings; `file_problem` says why they are not opened. With `media`, the column
    has the names of files, and the profile is that of their pixels or samples. `mean_words` is the mean number of words
    of a text, and 95% of the texts have at most `usual_length` characters.
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
    names_files: bool = False
    file_problem: str = ""
    media: FileColumn | None = None
    mean_words: float = 0.0
    usual_length: int | None = None
    missing: tuple[str, ...] = ()
    date_format: str | None = None
    date_notes: tuple[str, ...] = ()
    source_type: str | None = None
    declared_values: tuple[str, ...] = ()
    invalid_examples: tuple[str, ...] = ()

    @property
    def num_valid(self) -> int:
        return self.num_rows - self.num_missing - self.num_invalid

    @property
    def conversion(self) -> str:
        """How numbers are converted when they are read, as a phrase; empty if they are not."""
        if self.source_type is None:
            return ""
        is_time = self.source_type.startswith(("duration", "time"))
        return f"{self.source_type} becomes {'seconds' if is_time else 'a number'}"

    def describe_invalid(self) -> str:
        """Returns how many values are not of the column's type, with examples of texts."""
        verb = "value is" if self.num_invalid == 1 else "values are"
        examples = f", such as {', '.join(map(repr, self.invalid_examples))}" if self.invalid_examples else ""
        if self.media is not None:
            return f"{self.num_invalid:,} row(s) name files that do not exist or do not open{examples}"
        return f"{self.num_invalid:,} {verb} not of type {self.logical_type}{examples}"

    @property
    def is_constant(self) -> bool:
        return self.num_distinct <= 1


class SourceProfile(Document):
    """The columns of a source, without those of `left_out`, which have their reasons.

    The texts of the columns `normalized` are counted without invisible characters. `first_malformed` describes a line.
    `numbers` are the options that read numbers, and `flatten` the inner lengths of arrays of arrays.
    """

    columns: tuple[ColumnProfile, ...]
    num_rows: int
    num_malformed: int
    first_malformed: str = ""
    left_out: dict[str, str] = Field(default_factory=dict)
    normalized: tuple[str, ...] = ()
    numbers: InferredNumbers = InferredNumbers({}, {})
    flatten: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    @property
    def reading_options(self) -> InferredNumbers:
        """The options that read numbers and arrays of arrays, and the reasons for them."""
        if not self.flatten:
            return self.numbers
        note = "arrays of arrays become one array, whose inner ones have these lengths"
        return InferredNumbers(
            {**self.numbers.options, "flatten": self.flatten}, {**self.numbers.notes, "flatten": note}
        )

    @property
    def missing(self) -> dict[str, tuple[str, ...]]:
        """By column, the texts that mark a missing value."""
        return {column.name: column.missing for column in self.columns if column.missing}

    def existing_column(self, name: str) -> ColumnProfile:
        """The column of a name that was found among the columns."""
        return next(column for column in self.columns if column.name == name)

    def column(self, name: str) -> ColumnProfile | None:
        return next((column for column in self.columns if column.name == name), None)


def profile_source(data: DataSource, scratch: Path, label: str = "", key: str | None = None) -> SourceProfile:
    """Returns the profile of the rows of `data`. Afterwards the folder `scratch` holds these rows.

    Args:
        label, key: names of columns in the source or the contract; these columns are not left out.

    Raises:
        DataMissing, EngineMissing: as `ingest` does.
        DataUnfit: there are no rows, or the label has a type that no contract has.
    """
    path = scratch / ROWS_FILE
    rows = read_source_rows(data, scratch, label)
    profilers = {field.name: _make_profiler(field, rows, data) for field in rows.schema}
    for batch in read_batches(path):
        for profiler, column in zip(profilers.values(), batch.columns, strict=True):
            profiler.add(column)
    formats = _count_formats(path, {name: profiler.candidate_formats() for name, profiler in profilers.items()})
    columns, left_out = [], dict(rows.left_out)
    labels, keys = (matching_names(requested, rows.schema.names) for requested in (label, key or ""))
    for name, profiler in profilers.items():
        statistics = profiler.statistics(is_label=name in labels, date_format=formats.get(name))
        reason = None if name in (*labels, *keys) else _reason_to_leave_out(statistics, rows.num_rows)
        reason = reason or describe_uneven_arrays(rows.inner_sizes.get(name, ()))
        if reason is not None:
            left_out[name] = reason
        else:
            columns.append(_profile_column(name, rows, statistics, path))
    return SourceProfile(
        columns=tuple(columns),
        num_rows=rows.num_rows,
        num_malformed=rows.num_malformed,
        first_malformed=rows.first_malformed,
        left_out=left_out,
        normalized=tuple(name for name in rows.normalized if name not in left_out),
        numbers=rows.numbers,
        flatten={
            name: tuple(sizes.most_common(1)[0][0] for sizes in depths)
            for name, depths in rows.inner_sizes.items()
            if name not in left_out
        },
    )


def _count_formats(path: Path, candidates: dict[str, list[InferredFormat]]) -> dict[str, FormatCounter]:
    """Returns for each column with candidates the format that fits best, in a second pass over these columns."""
    counters = {
        name: [FormatCounter(inferred) for inferred in formats] for name, formats in candidates.items() if formats
    }
    if counters:
        for batch in read_batches(path, list(counters)):
            for name, column_counters in counters.items():
                texts = batch[name].filter(pc.invert(pc.is_in(batch[name], pa.array(MARKERS))))
                for counter in column_counters:
                    counter.add(texts)
    return {name: choose_format(column_counters) for name, column_counters in counters.items()}


def _reason_to_leave_out(statistics: ColumnStatistics, num_rows: int) -> str | None:
    """Returns why a column is not read at all: it would keep rows or later data from passing the contract."""
    num_present = num_rows - statistics.num_missing
    if not num_present:
        return "it has no values"
    if statistics.num_invalid > _MAX_INVALID_SHARE * num_rows:
        what = {
            "integer": "whole numbers from -2^63 to 2^63 - 1",
            "number": "finite numbers",
            "array": "arrays with a value in every place",
        }.get(statistics.logical_type, f"of type {statistics.logical_type}")
        return f"{statistics.num_invalid:,} of its {num_present:,} values are not {what}"
    return None


def count_distinct_rows(scratch: Path, columns: Sequence[str]) -> int:
    """Returns how many of the profiled rows in `scratch` differ in these columns."""
    aliases = _aliases(scratch / ROWS_FILE)
    listed = ", ".join(aliases[name] for name in columns)
    return int(_query_rows(scratch / ROWS_FILE, f"select count(*) from (select distinct {listed} from rows)")[0][0])


def standard_deviation(scratch: Path, column: str) -> float:
    """Returns the standard deviation of the numbers in `column` over the profiled rows in `scratch`."""
    alias = _aliases(scratch / ROWS_FILE)[column]
    query = f"select stddev_pop(number) from (select try_cast({alias} as double) as number from rows)"
    return float(_query_rows(scratch / ROWS_FILE, f"{query} where isfinite(number)")[0][0])


def count_values(scratch: Path, column: str, split: str) -> dict[Any, int]:
    """Returns how many rows of a split have each value of `column`, of the profiled rows in `scratch`.

    The last column names the split.
    """
    aliases = _aliases(scratch / ROWS_FILE)
    alias, condition = aliases[column], f"{[*aliases.values()][-1]} = {quote_text(split)}"
    query = f"select {alias}, count(*) from rows where {condition} and {alias} is not null group by 1"
    return {row[0]: int(row[1]) for row in _query_rows(scratch / ROWS_FILE, query)}


def _aliases(path: Path) -> dict[str, str]:
    """Returns a name for each column in queries: DuckDB does not tell apart names that differ only in case."""
    return {name: f"c{position}" for position, name in enumerate(pq.read_schema(path).names)}


def _query_rows(path: Path, query: str) -> Sequence[Sequence[Any]]:
    """Returns the rows of a query about the view `rows`, whose columns are the aliases of the file's columns."""
    with duckdb_session.open_session() as engine:
        source = duckdb_session.parquet_path_sql(path)
        engine.execute(
            f"create view rows({', '.join(_aliases(path).values())}) as select * from read_parquet({source})"
        )
        return engine.sql(query).fetchall()


def _make_profiler(field: pa.Field, rows: SourceRows, data: DataSource) -> ColumnProfiler:
    logical_type = logical_type_of(field.type)
    if re.fullmatch(_WHOLE_DECIMAL, rows.source_types.get(field.name, "")):
        return TypedColumnProfiler("integer")
    if logical_type is None:
        element_type = logical_type_of(field.type.value_type)
        return ArrayColumnProfiler(element_type or "string", field.type.value_type)
    if pa.types.is_string(field.type):
        return TextColumnProfiler(rows.num_rows, is_typed=not data.is_text)
    return TypedColumnProfiler(logical_type)


def _profile_column(name: str, rows: SourceRows, statistics: ColumnStatistics, path: Path) -> ColumnProfile:
    """Returns the profile of a column, with what only DuckDB counts exactly."""
    value_counts = statistics.value_counts
    num_distinct = len(value_counts) if value_counts is not None else statistics.min_distinct
    may_be_unique = statistics.may_be_unique and not statistics.num_missing and not statistics.num_invalid
    if value_counts is None and (statistics.logical_type in ("string", "integer") or may_be_unique):
        num_distinct = _count_distinct(name, statistics.missing if statistics.logical_type == "string" else (), path)
    return ColumnProfile(
        name=name,
        logical_type=statistics.logical_type,
        element_type=statistics.element_type,
        physical_type=statistics.physical_type,
        num_rows=rows.num_rows,
        source_type=rows.source_types.get(name),
        declared_values=rows.declared_values.get(name, ()),
        num_missing=statistics.num_missing,
        num_invalid=statistics.num_invalid,
        minimum=statistics.minimum,
        maximum=statistics.maximum,
        min_length=statistics.min_length,
        max_length=statistics.max_length,
        length_counts=statistics.length_counts,
        value_counts=None if value_counts is None else _by_frequency(value_counts),
        num_distinct=num_distinct,
        is_unique=may_be_unique and num_distinct == rows.num_rows,
        has_decimal_commas=statistics.has_decimal_commas,
        names_files=statistics.names_files,
        missing=statistics.missing,
        date_format=statistics.date_format,
        date_notes=statistics.date_notes,
        invalid_examples=statistics.invalid_examples,
    )


def _count_distinct(name: str, missing: Sequence[str], path: Path) -> int:
    alias = _aliases(path)[name]
    markers = ", ".join(map(quote_text, missing))
    condition = f" filter (where {alias} not in ({markers}))" if markers else ""
    return int(_query_rows(path, f"select count(distinct {alias}){condition} from rows")[0][0])


def _by_frequency(counts: Counter[Any]) -> tuple[tuple[Any, int], ...]:
    return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))))
