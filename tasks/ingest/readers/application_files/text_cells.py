"""Rows of texts from a source without reliable types. Cells are stripped and numbers rewritten as those of CSV are."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers.text_files.number_texts import notation_of, rewrite_columns

_MAX_WHOLE = 2**53  # of a float


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


def float_text(value: float) -> str:
    """Returns a number as CSV would have it: without decimals where it is whole and a float holds it exactly."""
    return str(int(value)) if value.is_integer() and abs(value) < _MAX_WHOLE else repr(value)
