"""Dividing and encoding rows on this machine: DuckDB sorts, Arrow encodes. Memory is bounded; the rest spills."""

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
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.sql_text import quote_name, quote_text
from bloomery.tasks.prepare.split_sql import (
    SPLIT_COLUMN,
    EngineFunctions,
    count_dropped_rows,
    require_no_leakage,
    split_query,
)

DUCKDB_FUNCTIONS = EngineFunctions(collect="list({value}) {window}", microseconds="epoch_us")
_GROUP_VALUES = 8_000_000  # of windows in a row group, which DuckDB and the encoder hold whole
_LEAST_GROUP_ROWS = 2048


class DuckdbSplits:
    """Divided rows in one Parquet file, sorted by part and key. `places` has the first row of each part and the end.

    `num_dropped` rows had no whole window, or no label of a forecast.
    """

    def __init__(self, path: Path, features: Features, places: dict[str, tuple[int, int]], num_dropped: int) -> None:
        self._path = path
        self._features = features
        self._places = places
        self.num_dropped = num_dropped

    def summaries(self) -> Iterator[str]:
        """What `fit` learns from, of the training part."""
        for batch in partial_statistics(self._features, self._part("train")):
            yield from batch.column(0).to_pylist()

    def encoded(self, part: str, encoder: Encoder) -> Iterator[pa.RecordBatch]:
        """The encoded rows of one part in the order of their keys."""
        return encode_batches(encoder, self._part(part), is_training=part == "train")

    def raw(self, part: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns `names` of the divided rows of one part, in the order of their keys."""
        return (batch.select(list(names)) for batch in self._part(part))

    def _part(self, part: str) -> Iterator[pa.RecordBatch]:
        start, stop = self._places.get(part, (0, 0))
        with pq.ParquetFile(self._path, pre_buffer=False) as file:
            first = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                begin, end = max(start - first, 0), min(stop - first, num_rows)
                if begin < end:
                    table = file.read_row_group(group).replace_schema_metadata(None)
                    yield from table.slice(begin, end - begin).combine_chunks().to_batches()
                first += num_rows


@contextlib.contextmanager
def split_with_duckdb(checked: ValidRows, features: Features, scratch: Path) -> Iterator[DuckdbSplits]:
    """The checked rows divided as `features` say. `scratch` is a folder that holds them until the block ends.

    Raises:
        DataUnfit: the parts share what they must not, or one is empty.
    """
    path = scratch / "divided.parquet"
    with duckdb_session.open_session() as engine:

        def ask(query: str) -> Sequence[Sequence[Any]]:
            return engine.sql(query).fetchall()

        source = duckdb_session.parquet_path_sql(settings().path(checked.uri))
        engine.execute(f"create view checked as select * from read_parquet({source})")
        engine.execute(
            f"copy (select * from ({split_query(features, checked.contract, 'checked', ask, DUCKDB_FUNCTIONS)}) "
            f"order by {SPLIT_COLUMN}, {quote_name(features.key)}) "
            f"to {quote_text(str(path))} (format parquet, compression snappy, row_group_size {_group_rows(features)})"
        )
        engine.execute(f"create view divided as select * from read_parquet({duckdb_session.parquet_path_sql(path)})")
        require_no_leakage(features, "divided", ask)
        counts = ask(f"select {SPLIT_COLUMN}, count(*) from divided group by 1 order by 1")
        dropped = count_dropped_rows(features, checked.contract, "checked", "divided", ask)
    places, start = {}, 0
    for part, num_rows in counts:
        places[part] = (start, start + num_rows)
        start += num_rows
    try:
        yield DuckdbSplits(path, features, places, dropped)
    finally:
        path.unlink()


def _group_rows(features: Features) -> int:
    """Rows in a row group: fewer where each holds windows."""
    if features.series is None:
        return ROW_GROUP_SIZE
    num_values = features.series.length * len(features.series.columns)
    return min(max(_GROUP_VALUES // num_values, _LEAST_GROUP_ROWS), ROW_GROUP_SIZE)
