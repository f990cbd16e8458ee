"""Moments and groups of the profiled rows, and whether the rows are in order of time.

A column of times is parsed once, into a Parquet file of whole numbers, about which DuckDB answers queries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.validation.casting import cast_column
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.parquet import read_batches, write_rows
from bloomery.tasks.ingest.column_changes import mark_missing
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile
from bloomery.tasks.scaffolding.profiling.source_rows import ROWS_FILE

MICROSECONDS_PER_DAY = 86_400_000_000
_MAX_OUT_OF_ORDER = 0.2  # of the steps in time: half of them go back in rows without an order
_MIN_STEPS = 10
_TABLE_FILE = "split.parquet"
_TYPES = {"date": pa.date32(), "timestamp": pa.timestamp("us", "UTC"), "integer": pa.int64()}


class TimeOrder(NamedTuple):
    """How many rows are later than the row before them, and how many are earlier."""

    num_ascents: int
    num_descents: int

    @property
    def is_ordered(self) -> bool:
        """Whether the rows are in order of time, from either end; blocks of rows may each be in order."""
        num_steps = self.num_ascents + self.num_descents
        return num_steps >= _MIN_STEPS and min(self) <= _MAX_OUT_OF_ORDER * num_steps


class RowTable:
    """Columns of the profiled rows for queries: the texts `c0`, `c1`, … of `columns`, and `moment` if there is a time.

    A moment is a whole number: of microseconds since 1970, or as it is. Rows without a moment are left out. Only the
    last table of a folder can be queried.
    """

    def __init__(self, scratch: Path, columns: Sequence[ColumnProfile], time: ColumnProfile | None = None) -> None:
        self._path = scratch / _TABLE_FILE
        self._condition = "true" if time is None else "moment is not null"
        self.aliases = {column.name: f"c{position}" for position, column in enumerate(columns)}
        moment_fields = [] if time is None else [("moment", pa.int64())]
        schema = pa.schema([*moment_fields, *((alias, pa.string()) for alias in self.aliases.values())])
        names = list(dict.fromkeys(column.name for column in (*columns, *([] if time is None else [time]))))
        batches = (
            pa.RecordBatch.from_arrays(
                [
                    *([] if time is None else [read_moments(batch[time.name], time)]),
                    *(_as_texts(_mark_missing(batch[column.name], column)) for column in columns),
                ],
                schema=schema,
            )
            for batch in read_batches(scratch / ROWS_FILE, names)
        )
        write_rows(self._path, schema, batches)

    def query(self, query: str) -> Sequence[Sequence[Any]]:
        """Returns the rows of a query about the table `rows`."""
        with duckdb_session.open_session() as engine:
            path = duckdb_session.parquet_path_sql(self._path)
            engine.execute(f"create view rows as select * from read_parquet({path}) where {self._condition}")
            return engine.sql(query).fetchall()


def read_moments(values: pa.Array, column: ColumnProfile) -> pa.Array:
    """Returns times as whole numbers; null where a value is missing or no time."""
    moments, _ = cast_column(_mark_missing(values, column), _TYPES[column.logical_type], column.date_format)
    if pa.types.is_temporal(moments.type):
        moments = moments.cast(pa.timestamp("us")).cast(pa.int64())
    return moments


def measure_order(scratch: Path, column: ColumnProfile) -> TimeOrder:
    """Compares each of the profiled rows in `scratch` with the row before it."""
    num_ascents = num_descents = 0
    for moments in _moment_batches(scratch, column):
        steps = np.diff(moments)
        num_ascents += int((steps > 0).sum())
        num_descents += int((steps < 0).sum())
    return TimeOrder(num_ascents, num_descents)


def _moment_batches(scratch: Path, column: ColumnProfile) -> Iterator[np.ndarray]:
    """Yields the moments of the rows that have one, each batch with the last moment of the one before it in front."""
    last = np.zeros(0, np.int64)
    for batch in read_batches(scratch / ROWS_FILE, [column.name]):
        moments = read_moments(batch[column.name], column).drop_null().to_numpy()
        if len(moments):
            yield np.concatenate([last, moments])
            last = moments[-1:]


def _as_texts(values: pa.Array) -> pa.Array:
    """The values as texts; lists as JSON."""
    if pa.types.is_list(values.type):
        return pa.array([None if value is None else json.dumps(value) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _mark_missing(values: pa.Array, column: ColumnProfile) -> pa.Array:
    is_text = pa.types.is_string(values.type)
    return mark_missing(values, column.missing) if is_text and column.missing else values
