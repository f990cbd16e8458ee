"""Ingests sources that a test writes."""

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


class IngestResult(NamedTuple):
    """The record, the rows, and the malformed lines as (file, line, text, reason)."""

    record: RawRows
    table: pa.Table
    malformed: list[tuple[Any, ...]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.table.to_pylist()


IngestRows = Callable[..., IngestResult]


@pytest.fixture
def ingest_rows(home: Path) -> IngestRows:
    """`ingest_rows(source=…, …)` ingests the source that a recipe's `data` with these options describes."""

    def call(**data: Any) -> IngestResult:
        record = ingest(locate_source(DataSource(**data)))
        table = pq.read_table(home / record.uri)
        malformed = [tuple(row.values()) for row in pq.read_table(home / record.malformed_uri).to_pylist()]
        assert (record.num_rows, record.num_malformed) == (table.num_rows, len(malformed))
        return IngestResult(record, table, malformed)

    return call
