"""IDX files, as MNIST has them: a file of arrays and a file of their labels.

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

from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BATCH_BYTES = 8 << 20
_GROUP_BYTES = 64 << 20


class _Header(NamedTuple):
    type: np.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.type.itemsize * math.prod(self.shape[1:])


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """A row per array: `image`, its values in order in a list of the file's type, and `label` if labels are given.

    Raises:
        DataMissing: a file is no IDX or is cut off, or there are more arrays than labels or fewer.
    """
    place = _one(data, origin.source)
    with place.stream() as stream:
        header = _header(stream, place)
    if origin.labels is None:
        labels = None
    else:
        labels = _labels(_one(data, origin.labels))
        if len(labels) != header.shape[0]:
            told = f"it has {len(labels)} labels for {header.shape[0]} arrays in {origin.source}"
            raise unreadable_error(origin.labels, told, "a label for each array")
    kind = pa.list_(pa.from_numpy_dtype(header.type.newbyteorder("=")))
    schema = pa.schema([("image", kind), *([("label", pa.int64())] if labels is not None else [])])
    group_rows = max(1, min(ROW_GROUP_SIZE, _GROUP_BYTES // max(header.row_bytes, 1)))
    return RowStream(schema, _batches(place, schema, labels), group_rows)


def identify(data: Data, origin: Origin) -> list[object]:
    """The digests of both files."""
    labels = [] if origin.labels is None else locations.identify_files(data, Origin(source=origin.labels))
    return [locations.identify_files(data, origin), labels]


def _one(data: Data, source: str) -> FileLocation:
    found = locations.find_files(data, source)
    if len(found) > 1:
        raise unreadable_error(source, f"it is {len(found)} files", "one IDX file; give several as `sources`")
    return found[0]


def _header(stream: io.BufferedReader, place: FileLocation) -> _Header:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or not start[3]:
        raise unreadable_error(place.path, f"it begins with the bytes {start.hex(' ')}", "an IDX file", "IDX")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise unreadable_error(place.path, "it ends in its header", "a whole IDX file", "IDX")
    return _Header(np.dtype(_TYPES[start[2]]), struct.unpack(f">{start[3]}I", sizes))


def _labels(place: FileLocation) -> np.ndarray:
    with place.stream() as stream:
        header = _header(stream, place)
        if len(header.shape) != 1 or header.type.kind == "f":
            raise unreadable_error(place.path, f"its shape is {header.shape}", "a list of whole numbers")
        content = _exactly(stream, header.shape[0] * header.row_bytes, place)
        _require_end(stream, place)
    return np.frombuffer(content, header.type).astype(np.int64)


def _batches(place: FileLocation, schema: pa.Schema, labels: np.ndarray | None) -> Iterator[pa.RecordBatch]:
    with place.stream() as stream:
        header = _header(stream, place)
        size = math.prod(header.shape[1:])
        step = max(1, _BATCH_BYTES // max(header.row_bytes, 1))
        for start in count(0, step):
            num_rows = min(step, header.shape[0] - start)
            if num_rows <= 0:
                break
            values = np.frombuffer(_exactly(stream, num_rows * header.row_bytes, place), header.type)
            offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * np.int32(size))
            images = pa.ListArray.from_arrays(offsets, pa.array(values.astype(header.type.newbyteorder("="))))
            told = [] if labels is None else [pa.array(labels[start : start + num_rows])]
            yield pa.RecordBatch.from_arrays([images.cast(schema.field("image").type), *told], schema=schema)
        _require_end(stream, place)


def _exactly(stream: io.BufferedReader, size: int, place: FileLocation) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise unreadable_error(place.path, "it ends before its last value", "as many values as its header says", "IDX")
    return content


def _require_end(stream: io.BufferedReader, place: FileLocation) -> None:
    if stream.read(1):
        raise unreadable_error(
            place.path, "it goes on behind its last value", "as many values as its header says", "IDX"
        )
