"""Stata files (.dta), read with pandas. As a whole, a file must fit into memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error

if TYPE_CHECKING:
    import pandas as pd

_BATCH_ROWS = 8_192


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows: labelled values as labels, dates as times, empty texts and Stata's missing values as null.

    Values of a column whose labels are not unique stay numbers.

    Raises:
        DataMissing: a file is no complete Stata file.
    """
    return files.read_files(data, origin, malformed, _read_schema, _read_batches)


def _read_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    return _read_table(location).schema


def _read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    yield from _read_table(location).cast(schema).to_batches(_BATCH_ROWS)


def _read_table(location: FileLocation) -> pa.Table:
    import pandas as pd

    with location.open_stream() as stream:
        content = stream.read()
    try:
        try:
            frame = pd.read_stata(io.BytesIO(content))
        except ValueError as failure:
            if "not unique" not in str(failure):
                raise
            frame = pd.read_stata(io.BytesIO(content), convert_categoricals=False)
    except Exception as failure:  # pandas raises errors of many types for bytes that it does not expect
        raise unreadable_error(location.path, failure, "a complete Stata file", "stata") from failure
    return pa.table({str(name): _to_array(frame[name]) for name in frame.columns})


def _to_array(values: pd.Series[Any]) -> pa.Array:
    if values.dtype == object or str(values.dtype) == "category":
        missing = values.isna()
        texts = [
            None if is_missing or value == "" else str(value) for value, is_missing in zip(values, missing, strict=True)
        ]
        return pa.array(texts, pa.string())
    array = pa.Array.from_pandas(values)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
