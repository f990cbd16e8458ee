"""Rows of texts from a source without reliable types: they are stripped, and their numbers rewritten, as of CSV."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers.base import unreadable_error
from bloomery.tasks.ingest.readers.number_texts import notation_of, rewrite_columns


def to_text_batch(rows: Sequence[Sequence[str | None]], schema: pa.Schema, data: DataSource) -> pa.RecordBatch:
    """Returns rows of texts as a batch, as the options `strip`, `missing` and those of numbers say."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    missing = pa.array(data.missing_texts, pa.string())
    arrays = []
    for column in columns:
        cells = pa.array(list(column), pa.string())
        if data.strip:
            cells = pc.utf8_trim_whitespace(cells)
        arrays.append(pc.if_else(pc.is_in(cells, missing), pa.scalar(None, pa.string()), cells))
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    notation = notation_of(data)
    return batch if notation is None else rewrite_columns(batch, notation, data.numbers)


def require_number_columns(names: Sequence[str], data: DataSource, path: str) -> None:
    """Raises DataMissing where the option `numbers` names a column that does not exist."""
    unknown = [name for name in data.numbers or () if name not in names]
    if unknown:
        problem = f"numbers: there is no column {', '.join(unknown)}"
        raise unreadable_error(path, problem, f"some of {', '.join(names)}", options=("numbers",))
