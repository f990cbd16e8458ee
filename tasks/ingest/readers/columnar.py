"""Files with types: Parquet, ORC and Arrow (Feather)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, canonical_schema, conform_batch

_BATCH_ROWS = 65_536


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows in the files' types, widened where files differ. Dictionary columns hold their values.

    Raises:
        DataMissing: a file is incomplete, or the files have other columns or types that do not fit each other.
    """
    return files.read_files(data, origin, malformed, _read_schema, _read_batches)


def _read_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    with location.open_file() as file:
        return canonical_schema(read_raw_schema(file, data.kind))


def _read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    with location.open_file() as file:
        for batch in read_raw_batches(file, data.kind):
            yield conform_batch(batch, schema)


def read_raw_schema(file: pa.NativeFile, kind: str) -> pa.Schema:
    """Returns the schema of a file of format `kind` as it is stored, with its metadata."""
    if kind == "parquet":
        return pq.read_schema(file)
    if kind == "orc":
        from pyarrow import orc

        return orc.ORCFile(file).schema
    return _open_arrow(file).schema


def read_raw_batches(
    file: pa.NativeFile, kind: str, max_rows: int = _BATCH_ROWS, names: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a file of format `kind` in its own types.

    Of Parquet, a batch has at most `max_rows` rows, and the columns `names` alone are read.
    """
    if kind == "parquet":
        yield from pq.ParquetFile(file, pre_buffer=False).iter_batches(max_rows, columns=names)
    elif kind == "orc":
        from pyarrow import orc

        stripes = orc.ORCFile(file)
        for index in range(stripes.nstripes):
            yield stripes.read_stripe(index)
    else:
        reader = _open_arrow(file)
        if isinstance(reader, pa.RecordBatchFileReader):
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)
        else:
            yield from reader


def _open_arrow(file: pa.NativeFile) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    """Opens Arrow's file format, or its stream format, which has no magic bytes at its start."""
    is_file_format = file.read(6) == b"ARROW1"
    file.seek(0)
    return pa.ipc.open_file(file) if is_file_format else pa.ipc.open_stream(file)
