"""Rows as they come out of ingest, for sources made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.records.records import RawRows
from bloomery.tasks.ingest.stage import ingest, locate_source


class Ingested(NamedTuple):
    """The record, the rows, and what was put aside as (file, line, text, reason)."""

    record: RawRows
    table: pa.Table
    malformed: list[tuple[Any, ...]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.table.to_pylist()


Read = Callable[..., Ingested]


@pytest.fixture
def read(home: Path) -> Read:
    """`read(source=…, …)`: what a recipe's `data` of these options gives."""

    def call(**data: Any) -> Ingested:
        record = ingest(locate_source(DataSource(**data)))
        table = pq.read_table(home / record.uri)
        malformed = [tuple(row.values()) for row in pq.read_table(home / record.malformed_uri).to_pylist()]
        assert (record.num_rows, record.num_malformed) == (table.num_rows, len(malformed))
        return Ingested(record, table, malformed)

    return call
