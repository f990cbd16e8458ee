"""Generates rows for the benchmarks: numbers with nulls and outliers, categories, and duplicates with another key."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.records.records import RawRows
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder

NUMBERS = tuple(f"n{position}" for position in range(6))
CATEGORIES = {"c0": 8, "c1": 50, "c2": 1000}
_GROUP_SIZE = 250_000


def write_generated_rows(path: Path, num_rows: int, seed: int = 0) -> None:
    """Writes `num_rows` rows to `path`: 2% nulls, 0.1% outliers, and 2% duplicates within a group."""
    categories = {
        name: pa.array([f"{name}-{value:04d}" for value in range(count)]) for name, count in CATEGORIES.items()
    }
    writer = None
    for start in range(0, num_rows, _GROUP_SIZE):
        random = np.random.default_rng([seed, start])
        size = min(_GROUP_SIZE, num_rows - start)
        columns: dict[str, pa.Array] = {}
        source = np.where(random.random(size) < 0.02, random.integers(0, size, size), np.arange(size))
        signal = random.normal(size=size)
        for position, name in enumerate(NUMBERS):
            values = signal * (position / 6) + random.gamma(2.0, 1.0 + position, size)
            values = np.where(random.random(size) < 0.001, values * 1000, values)
            columns[name] = pa.array(values, mask=random.random(size) < 0.02).take(pa.array(source))
        for name, count in CATEGORIES.items():
            codes = np.minimum(random.exponential(count / 5, size).astype(np.int64), count - 1)
            encoded = pa.DictionaryArray.from_arrays(pa.array(codes, mask=random.random(size) < 0.02), categories[name])
            columns[name] = encoded.cast(pa.string()).take(pa.array(source))
        columns["label"] = pa.array((signal + random.normal(size=size) > 0).astype(np.int64)).take(pa.array(source))
        table = pa.table({"id": pa.array(np.arange(start, start + size)), **columns})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def link_raw_rows(source: Path) -> RawRows:
    """Links the file `source` into the state folder, and returns the record that the stage `ingest` would return."""
    apply_engine_environment()
    home = require_state_folder().home
    os.link(source, home / "rows.parquet")
    return RawRows(
        uri="rows.parquet",
        source="generated",
        num_rows=pq.read_metadata(source).num_rows,
        malformed_uri="",
        num_malformed=0,
        is_text=False,
        digest=source.name,
    )
