"""IDX files, the format of MNIST: a file of arrays and a file of their labels.

Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, equal_lists, unreadable_error

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BATCH_BYTES = 8 << 20
_ROW_GROUP_BYTES = 64 << 20


class _Header(NamedTuple):
    """The type of the values, and the shape of all arrays together: the first size is their number."""

    type: np.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.type.itemsize * math.prod(self.shape[1:])


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns a row per array: `image`, a list of its values in the file's type, and `label` if there is a label file.

    Raises:
        DataMissing: a file is not IDX or incomplete, or the numbers of arrays and labels differ.
    """
    location = _find_file(data, origin.source)
    with location.open_stream() as stream:
        header = _read_header(stream, location)
    if origin.labels is None:
        labels = None
    else:
        labels = _read_labels(_find_file(data, origin.labels))
        if len(labels) != header.shape[0]:
            problem = f"it has {len(labels)} labels for {header.shape[0]} arrays in {origin.source}"
            raise unreadable_error(origin.labels, problem, "a label for each array")
    image_type = pa.list_(pa.from_numpy_dtype(header.type.newbyteorder("=")))
    schema = pa.schema([("image", image_type), *([("label", pa.int64())] if labels is not None else [])])
    row_group_size = max(1, min(ROW_GROUP_SIZE, _ROW_GROUP_BYTES // max(header.row_bytes, 1)))
    return RowStream(schema, _read_batches(location, schema, labels), row_group_size)


def identify(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the digests of both files."""
    labels = [] if origin.labels is None else locations.identify_files(data, SourceFile(source=origin.labels))
    return [locations.identify_files(data, origin), labels]


def _find_file(data: DataSource, source: str) -> FileLocation:
    files = locations.find_files(data, source)
    if len(files) > 1:
        raise unreadable_error(source, f"it has {len(files)} files", "one IDX file; name several as `sources`")
    return files[0]


def _read_header(stream: io.BufferedReader, location: FileLocation) -> _Header:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or not start[3]:
        raise unreadable_error(location.path, f"it begins with the bytes {start.hex(' ')}", "an IDX file", "IDX")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise unreadable_error(location.path, "it ends inside its header", "a complete IDX file", "IDX")
    return _Header(np.dtype(_TYPES[start[2]]), struct.unpack(f">{start[3]}I", sizes))


def _read_labels(location: FileLocation) -> np.ndarray:
    with location.open_stream() as stream:
        header = _read_header(stream, location)
        if len(header.shape) != 1 or header.type.kind == "f":
            raise unreadable_error(location.path, f"its shape is {header.shape}", "a list of integers")
        content = _read_exactly(stream, header.shape[0] * header.row_bytes, location)
        _require_end(stream, location)
    return np.frombuffer(content, header.type).astype(np.int64)


def _read_batches(location: FileLocation, schema: pa.Schema, labels: np.ndarray | None) -> Iterator[pa.RecordBatch]:
    with location.open_stream() as stream:
        header = _read_header(stream, location)
        size = math.prod(header.shape[1:])
        step = max(1, _BATCH_BYTES // max(header.row_bytes, 1))
        for start in count(0, step):
            num_rows = min(step, header.shape[0] - start)
            if num_rows <= 0:
                break
            values = np.frombuffer(_read_exactly(stream, num_rows * header.row_bytes, location), header.type)
            images = equal_lists(pa.array(values.astype(header.type.newbyteorder("="))), size, num_rows)
            label_column = [] if labels is None else [pa.array(labels[start : start + num_rows])]
            arrays = [images.cast(schema.field("image").type), *label_column]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        _require_end(stream, location)


def _read_exactly(stream: io.BufferedReader, size: int, location: FileLocation) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise unreadable_error(
            location.path, "it ends before its last value", "as many values as its header states", "IDX"
        )
    return content


def _require_end(stream: io.BufferedReader, location: FileLocation) -> None:
    if stream.read(1):
        raise unreadable_error(
            location.path, "it continues after its last value", "as many values as its header states", "IDX"
        )
