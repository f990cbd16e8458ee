"""Files that carry their types: Parquet, ORC and Arrow (Feather)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, canonical_schema, conform_batch

_BATCH_ROWS = 65_536


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """The rows in the types of the files, widened where files differ; words stand in place of a dictionary's numbers.

    Raises:
        DataMissing: a file is not whole, or the files have other columns or types that do not fit each other.
    """
    return files.read_files(data, origin, malformed, _schema, _batches)


def _schema(place: FileLocation, data: Data) -> pa.Schema:
    with place.open() as file:
        if data.kind == "parquet":
            found = pq.read_schema(file)
        elif data.kind == "orc":
            from pyarrow import orc

            found = orc.ORCFile(file).schema
        else:
            found = _arrow_reader(file).schema
    return canonical_schema(found)


def _batches(
    place: FileLocation, data: Data, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    with place.open() as file:
        for batch in _raw_batches(file, data.kind):
            yield conform_batch(batch, schema)


def _raw_batches(file: pa.NativeFile, kind: str) -> Iterator[pa.RecordBatch]:
    if kind == "parquet":
        yield from pq.ParquetFile(file, pre_buffer=False).iter_batches(_BATCH_ROWS)
    elif kind == "orc":
        from pyarrow import orc

        stripes = orc.ORCFile(file)
        for position in range(stripes.nstripes):
            yield stripes.read_stripe(position)
    else:
        reader = _arrow_reader(file)
        if isinstance(reader, pa.RecordBatchFileReader):
            for position in range(reader.num_record_batches):
                yield reader.get_batch(position)
        else:
            yield from reader


def _arrow_reader(file: pa.NativeFile) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    """Arrow's file format, or its stream format, which has no magic word at its start."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
