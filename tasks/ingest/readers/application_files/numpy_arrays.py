"""Arrays of NumPy: a .npy file, or the arrays of a .npz file. Pickled objects are never loaded.

Arrays in C order are read in blocks of rows, others as a whole.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.option_names import option_names
from bloomery.tasks.ingest.readers.base import (
    MalformedWriter,
    RowStream,
    canonical_type,
    conform_batch,
    equal_lists,
    unreadable_error,
)
from bloomery.tasks.ingest.zip_members import ZIP_ERRORS

MAX_SPLIT_WIDTH = 256  # values of a row that become a column each; more are one column of arrays
_BATCH_BYTES = 8 << 20
_ROW_GROUP_BYTES = 64 << 20
_CHANNELS = (1, 3, 4)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LABEL_COLUMN = "label"
# The unit in which times of each unit of NumPy are read; months of a duration have no length.
_READ_UNITS = {"h": "s", "m": "s", "s": "s", "ms": "ms", "us": "us", "ns": "ns", "ps": "ns", "fs": "ns", "as": "ns"}
_READ_UNITS_BY_KIND = {
    "M": {"Y": "D", "M": "D", "W": "D", "D": "D", **_READ_UNITS},
    "m": {"W": "s", "D": "s", **_READ_UNITS},
}


class ArrayHeader(NamedTuple):
    """The shape and the type of an array in a file. `member` is its name in a zip, `column` that of its column."""

    column: str
    shape: tuple[int, ...]
    type: np.dtype
    location: FileLocation
    member: str | None = None

    @property
    def path(self) -> str:
        return self.location.path

    @property
    def num_rows(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        return max(self.type.itemsize * math.prod(self.shape[1:]), 1)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Channels, height and width of each image; () where the rows are no images."""
        sizes = self.shape[1:]
        if len(sizes) == 3:
            is_channel_last = sizes[2] in _CHANNELS
            if not is_channel_last and sizes[0] not in _CHANNELS:
                return ()
            return (sizes[2], *sizes[:2]) if is_channel_last else sizes
        is_image = len(sizes) == 2 and (self.type.kind in "ub" or sizes[0] == sizes[1])
        return (1, *sizes) if is_image else ()


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns a row for each entry along the first axis of the arrays.

    A vector is a column. Of a matrix, each of at most 256 values in a row is a column, named by `columns`, else by a
    number; more are one column of arrays, as are those of three and more axes. Images are stored channel after channel.
    Records (structured arrays) have a column for each field. The column of a .npy file is `image`, or `values`.

    Raises:
        DataMissing: a file is incomplete, its arrays have another number of rows, or a type that no column has.
    """
    headers = _selected_headers(data, origin)
    _require_equal_lengths(headers, origin)
    fields = [field for header in headers for field in _fields(header, data)]
    names = [field.name for field in fields]
    if len(set(names)) < len(names):
        repeated = ", ".join(sorted({name for name in names if names.count(name) > 1}))
        raise _arrays_error(origin.source, f"two columns have the name {repeated}", "columns with unique names")
    raw = pa.schema(fields)
    schema = pa.schema([(field.name, canonical_type(field.type)) for field in raw])
    num_bytes = sum(header.row_bytes for header in headers)
    row_group_size = max(1, min(ROW_GROUP_SIZE, _ROW_GROUP_BYTES // num_bytes))
    return RowStream(schema, _read_batches(headers, raw, schema, num_bytes), row_group_size)


def identify(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the digests of the files, and which arrays are read."""
    labels = [] if origin.labels is None else locations.identify_files(data, SourceFile(source=origin.labels))
    return [locations.identify_files(data, origin), labels, origin.arrays]


def list_arrays(source: str) -> list[ArrayHeader]:
    """Returns the arrays of a .npz or .npy file, with their shapes and types.

    Raises:
        DataMissing: the file is incomplete, or has pickled objects.
    """
    return _list_arrays(_find_file(DataSource(source=source, format="numpy"), source))


def read_texts(header: ArrayHeader) -> list[str]:
    """Returns the texts of a vector."""
    with ExitStack() as stack:
        blocks = list(_read_blocks(header, max(header.num_rows, 1), stack))
    return [str(text) for block in blocks for text in _to_array(block).to_pylist()]


def _selected_headers(data: DataSource, origin: SourceFile) -> list[ArrayHeader]:
    headers = _list_arrays(_find_file(data, origin.source))
    if origin.arrays is not None:
        by_name = {header.column: header for header in headers}
        missing = [array for array in origin.arrays.values() if array not in by_name]
        if missing:
            problem = f"it has no array {', '.join(missing)}"
            raise _arrays_error(origin.source, problem, f"some of {', '.join(by_name)}")
        headers = [by_name[array]._replace(column=column) for column, array in origin.arrays.items()]
    if origin.labels is not None:
        (labels,) = _list_arrays(_find_file(data, origin.labels))[:1]
        headers.append(labels._replace(column=_LABEL_COLUMN))
    for header in headers:
        _require_supported(header)
    return headers


def _find_file(data: DataSource, source: str) -> FileLocation:
    files = locations.find_files(data, source)
    if len(files) > 1:
        raise unreadable_error(source, f"it has {len(files)} files", "one file of arrays; name several as `sources`")
    return files[0]


def _list_arrays(location: FileLocation) -> list[ArrayHeader]:
    with location.open_file() as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if not is_zip:
            return [_read_header(file, location, PurePosixPath(location.path).stem, None)]
        try:
            with zipfile.ZipFile(file) as archive:
                headers = []
                for member in archive.namelist():
                    with archive.open(member) as stream:
                        headers.append(_read_header(stream, location, member.removesuffix(".npy"), member))
                return headers
        except ZIP_ERRORS as failure:
            raise unreadable_error(location.path, failure, "a complete .npz file", "numpy") from failure


def _read_header(stream: IO[bytes], location: FileLocation, name: str, member: str | None) -> ArrayHeader:
    try:
        version = npy.read_magic(stream)
        if version in _HEADERS:
            shape, _, dtype = _HEADERS[version](stream)
        else:
            array = npy.read_array(_rewound(stream, version), allow_pickle=False)
            shape, dtype = array.shape, array.dtype
    except ValueError as failure:
        problem = f"array {name}: {failure}"
        raise unreadable_error(location.path, problem, "arrays of numbers, texts or times", "numpy") from failure
    return ArrayHeader(name, shape, dtype, location, member)


def _rewound(stream: IO[bytes], version: tuple[int, int]) -> io.BytesIO:
    """Returns a stream of the complete file, of which the first bytes have been read."""
    return io.BytesIO(npy.magic(*version) + stream.read())


def _require_supported(header: ArrayHeader) -> None:
    types = [header.type[name] for name in header.type.names] if header.type.names else [header.type]
    for dtype in types:
        base = dtype.base
        if base.hasobject:
            raise _arrays_error(
                header.path,
                f"array {header.column} has pickled Python objects, which may run code and are never loaded",
                "numbers, booleans, times, or texts (saved as array.astype(str))",
            )
        is_time_without_unit = base.kind in _READ_UNITS_BY_KIND and _time_type(base) is None
        if base.kind not in "biufSUMm" or (base.kind == "f" and base.itemsize > 8) or is_time_without_unit:
            problem = f"array {header.column} is of type {base}"
            raise _arrays_error(header.path, problem, "numbers of at most 64 bits, texts, booleans or times")
    if not header.shape:
        raise _arrays_error(header.path, f"array {header.column} is a single value", "an array with a row per example")


def _require_equal_lengths(headers: Sequence[ArrayHeader], origin: SourceFile) -> None:
    if not headers or len({header.num_rows for header in headers}) > 1:
        shapes = ", ".join(f"{header.column} {' x '.join(map(str, header.shape))}" for header in headers)
        problem = f"its arrays have several numbers of rows: {shapes}" if headers else "it has no arrays"
        raise _arrays_error(origin.source, problem, "arrays with an entry for each row")


def _fields(header: ArrayHeader, data: DataSource) -> list[pa.Field]:
    """Returns the columns of an array."""
    if header.type.names:
        return [pa.field(name, _field_type(header.type[name])) for name in header.type.names]
    arrow_type, sizes = _element_type(header.type), header.shape[1:]
    if not _is_split(header):
        is_nested = len(sizes) == 2 and not header.image_shape
        element = pa.list_(arrow_type) if is_nested else arrow_type
        is_file = header.member is None and header.column != _LABEL_COLUMN
        name = ("image" if header.image_shape else "values") if is_file else header.column
        return [pa.field(name, pa.list_(element))]
    width = math.prod(sizes)
    if width == 1 and (header.member is not None or header.column == _LABEL_COLUMN):
        return [pa.field(header.column, arrow_type)]
    prefix = "column" if header.member is None else header.column
    names = [f"{prefix}_{number}" for number in range(1, width + 1)]
    if data.columns is not None and header.column != _LABEL_COLUMN:
        if len(data.columns) != width:
            problem = f"array {header.column} has {width} values in a row, and there are {len(data.columns)} names"
            raise unreadable_error(header.path, problem, "a name for each value", options=("columns", "arrays"))
        names = list(data.columns)
    return [pa.field(name, arrow_type) for name in names]


def _is_split(header: ArrayHeader) -> bool:
    return len(header.shape) <= 2 and math.prod(header.shape[1:]) <= MAX_SPLIT_WIDTH


def _field_type(dtype: np.dtype) -> pa.DataType:
    return pa.list_(_element_type(dtype.base)) if dtype.shape else _element_type(dtype)


def _element_type(dtype: np.dtype) -> pa.DataType:
    if dtype.kind in "SU":
        return pa.string()
    if dtype.kind == "f" and dtype.itemsize == 2:
        return pa.float32()
    return pa.array(np.zeros(0, _time_type(dtype) or dtype.newbyteorder("="))).type


def _time_type(dtype: np.dtype) -> np.dtype | None:
    """Returns the type as which dates, times and durations are read; None for other types and without a unit."""
    unit = _READ_UNITS_BY_KIND.get(dtype.kind, {}).get(np.datetime_data(dtype)[0] if dtype.kind in "Mm" else "")
    return None if unit is None else np.dtype(f"{dtype.kind}8[{unit}]")


def _read_batches(
    headers: Sequence[ArrayHeader], raw: pa.Schema, schema: pa.Schema, num_bytes: int
) -> Iterator[pa.RecordBatch]:
    step = max(1, _BATCH_BYTES // num_bytes)
    with ExitStack() as stack:
        blocks = [_read_blocks(header, step, stack) for header in headers]
        for parts in zip(*blocks, strict=True):
            arrays = [
                array for header, block in zip(headers, parts, strict=True) for array in _to_arrays(header, block)
            ]
            typed = [array.cast(field.type) for array, field in zip(arrays, raw, strict=True)]
            yield conform_batch(pa.RecordBatch.from_arrays(typed, schema=raw), schema)


def _read_blocks(header: ArrayHeader, step: int, stack: ExitStack) -> Iterator[np.ndarray]:
    """Yields the rows of an array in blocks of `step` rows."""
    try:
        stream = _open(header, stack)
        version = npy.read_magic(stream)
        is_fortran = _HEADERS[version](stream)[1] if version in _HEADERS else True
        array = npy.read_array(_open(header, stack), allow_pickle=False) if is_fortran else None
        for start in range(0, header.num_rows, step):
            num_rows = min(step, header.num_rows - start)
            if array is not None:
                yield array[start : start + num_rows]
                continue
            content = stream.read(num_rows * header.row_bytes)
            if len(content) < num_rows * header.row_bytes:
                raise _incomplete_error(header)
            yield np.frombuffer(content, header.type).reshape(num_rows, *header.shape[1:])
    except ZIP_ERRORS as failure:
        raise unreadable_error(header.path, failure, "a complete .npz file", "numpy") from failure
    except ValueError as failure:
        raise _incomplete_error(header) from failure


def _open(header: ArrayHeader, stack: ExitStack) -> IO[bytes]:
    file = stack.enter_context(header.location.open_file())
    if header.member is None:
        return file
    return stack.enter_context(stack.enter_context(zipfile.ZipFile(file)).open(header.member))


def _incomplete_error(header: ArrayHeader) -> DataMissing:
    problem = f"array {header.column} ends before its last value"
    return unreadable_error(header.path, problem, "as many values as its header states", "numpy")


def _to_arrays(header: ArrayHeader, block: np.ndarray) -> list[pa.Array]:
    """Returns the columns of a block of rows."""
    if header.type.names:
        return [_to_array(block[name]) for name in header.type.names]
    if _is_split(header):
        matrix = block.reshape(len(block), -1)
        return [_to_array(matrix[:, index]) for index in range(matrix.shape[1])]
    if len(block.shape) == 4 and header.image_shape and block.shape[-1] in _CHANNELS:
        block = np.moveaxis(block, -1, 1)
    if len(block.shape) == 3 and not header.image_shape:
        num_rows, num_steps, width = block.shape
        steps = equal_lists(_to_array(block.reshape(-1)), width, num_rows * num_steps)
        return [equal_lists(steps, num_steps, num_rows)]
    return [_to_array(block.reshape(len(block), -1))]


def _to_array(values: np.ndarray) -> pa.Array:
    """Returns a vector as an array, and a matrix as an array of lists."""
    if values.ndim > 1:
        size = math.prod(values.shape[1:])
        return equal_lists(_to_array(np.ascontiguousarray(values).reshape(-1)), size, len(values))
    if values.dtype.kind == "S":
        return pa.array([text.decode("utf-8", "backslashreplace") for text in values.tolist()], pa.string())
    if values.dtype.kind == "U":
        return pa.array(values.tolist(), pa.string())
    native = np.ascontiguousarray(values.astype(_time_type(values.dtype) or values.dtype.newbyteorder("=")))
    return pa.array(native.astype(np.float32) if native.dtype == np.float16 else native)


def _arrays_error(path: str, problem: str, required: str) -> DataMissing:
    return DataMissing(
        f"{path} cannot be read as numpy: {problem}",
        required=required,
        where=path,
        remedy=f"name the arrays to read by {option_names('arrays')} (column=array), or save others",
    )
