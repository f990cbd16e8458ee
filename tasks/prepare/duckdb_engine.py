"""Splits and encodes rows on one machine: DuckDB sorts, Arrow encodes. Memory is bounded, and DuckDB spills to disk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.records.records import ValidRows
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode_batches, partial_statistics
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE, row_group_size_of
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.sql_text import column_alias, quote_text
from bloomery.tasks.prepare.split_sql import (
    SPLIT_COLUMN,
    EngineFunctions,
    count_dropped_rows,
    names_by_alias,
    require_no_leakage,
    split_query,
)

DUCKDB_FUNCTIONS = EngineFunctions(
    collect="list({value}) {window}",
    microseconds="epoch_us",
    sort_set="list_sort(list_distinct({value}))",
    make_array="[{values}]",
    text="varchar",
)
_ROW_GROUP_VALUES = 8_000_000  # of windows in a row group, which DuckDB and the encoder hold in memory
_MIN_ROW_GROUP_SIZE = 2048  # of DuckDB


class DuckdbSplits:
    """Split rows in one Parquet file, sorted by split and key. `ranges` has the first row and the end of each split.

    `num_dropped` rows had no complete window, or no label of a forecast.
    """

    def __init__(self, path: Path, features: Features, ranges: dict[str, tuple[int, int]], num_dropped: int) -> None:
        self._path = path
        self._features = features
        self._ranges = ranges
        self._names = names_by_alias(features)
        self.num_dropped = num_dropped

    def training_statistics(self) -> Iterator[str]:
        """Yields the statistics of the training split, for `fit`."""
        for batch in partial_statistics(self._features, self._batches("train")):
            yield from batch.column(0).to_pylist()

    def encode_split(self, split: str, encoder: Encoder) -> Iterator[pa.RecordBatch]:
        """Yields the encoded rows of one split, sorted by key."""
        return encode_batches(encoder, self._batches(split), is_training=split == "train")

    def read_split(self, split: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the columns `names` of one split without encoding, sorted by key."""
        return (batch.select(list(names)) for batch in self._batches(split))

    def _batches(self, split: str) -> Iterator[pa.RecordBatch]:
        start, stop = self._ranges.get(split, (0, 0))
        with pq.ParquetFile(self._path, pre_buffer=False) as file:
            group_start = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                lower, upper = max(start - group_start, 0), min(stop - group_start, num_rows)
                if lower < upper:
                    table = file.read_row_group(group).replace_schema_metadata(None).drop_columns([SPLIT_COLUMN])
                    table = table.rename_columns([self._names[alias] for alias in table.column_names])
                    yield from table.slice(lower, upper - lower).combine_chunks().to_batches()
                group_start += num_rows


@contextlib.contextmanager
def split_with_duckdb(valid_rows: ValidRows, features: Features, scratch: Path) -> Iterator[DuckdbSplits]:
    """Yields the validated rows in the splits of `features`. The folder `scratch` holds them until the block ends.

    Raises:
        DataUnfit: two splits share what they must not, or one is empty.
    """
    path = scratch / "split.parquet"
    with duckdb_session.open_session() as engine:

        def run_query(query: str) -> Sequence[Sequence[Any]]:
            return engine.sql(query).fetchall()

        valid_rows_path = settings().path(valid_rows.uri)
        duckdb_session.create_row_view(engine, "checked", valid_rows_path)
        split = split_query(features, valid_rows.contract, "checked", run_query, DUCKDB_FUNCTIONS)
        options = f"format parquet, compression snappy, row_group_size {_row_group_size(features, valid_rows_path)}"
        engine.execute(
            f"copy (select * from ({split}) order by {SPLIT_COLUMN}, {column_alias(features.key)}) "
            f"to {quote_text(str(path))} ({options})"
        )
        split_path = duckdb_session.parquet_path_sql(path)
        engine.execute(f"create view split_rows as select * from read_parquet({split_path})")
        require_no_leakage(features, "split_rows", run_query)
        counts = run_query(f"select {SPLIT_COLUMN}, count(*) from split_rows group by 1 order by 1")
        num_dropped = count_dropped_rows(
            features, valid_rows.contract, "checked", "split_rows", run_query, DUCKDB_FUNCTIONS
        )
    ranges, start = {}, 0
    for name, num_rows in counts:
        ranges[name] = (start, start + num_rows)
        start += num_rows
    try:
        yield DuckdbSplits(path, features, ranges, num_dropped)
    finally:
        path.unlink()


def _row_group_size(features: Features, valid_rows_path: Path) -> int:
    """Returns the number of rows in a row group: that of the valid rows, or less if each row holds windows."""
    num_values = sum(features.window_lengths.values())
    window_rows = _ROW_GROUP_VALUES // num_values if num_values else ROW_GROUP_SIZE
    return max(min(window_rows, row_group_size_of(valid_rows_path)), _MIN_ROW_GROUP_SIZE)
