"""What every reader returns: batches of one schema. And where malformed lines go."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import DataMissing
from bloomery.models.features.statistics.arrow_arrays import list_offsets
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE, RowWriter
from bloomery.tasks.ingest.option_names import option_names

MALFORMED_SCHEMA = pa.schema(
    [("file", pa.string()), ("line", pa.int64()), ("text", pa.string()), ("reason", pa.string())],
)
MAX_TEXT_LENGTH = 1_000
SOURCE_TYPE = b"source_type"  # of a field's metadata
DECLARED_VALUES = b"declared_values"  # of a field's metadata: the texts that a column may have, as JSON
_INT64_DIGITS = 18  # int64 holds every number of so many
_UNITS_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_BUFFERED_LINES = 4_096
_ESCAPED = re.compile("[\udc80-\udcff]")  # as Python's surrogateescape writes them


class RowStream(NamedTuple):
    """Batches that all have `schema`, to be written in row groups of `row_group_size` rows."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    row_group_size: int = ROW_GROUP_SIZE


class MalformedWriter:
    """Writes lines and files that are no rows to one Parquet file, in small batches."""

    def __init__(self, path: Path, *, is_encrypted: bool = False) -> None:
        self._writer = RowWriter(path, MALFORMED_SCHEMA, encrypted=["text"] if is_encrypted else [])
        self._buffer: list[tuple[str, int | None, str, str]] = []
        self._last = ("", "")
        self.num_lines = 0

    def __enter__(self) -> MalformedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType) -> None:
        if kind is None:
            self._flush()
        self._writer.__exit__(kind, error, trace)

    def digest(self) -> str:
        return self._writer.digest()

    def add(self, file: str, line: int | None, text: str, reason: str) -> None:
        """Adds line number `line` of `file`, or the whole file if it is None. Long texts are cut."""
        self._buffer.append((file, line, text[:MAX_TEXT_LENGTH], reason))
        self._last = (file, reason)
        self.num_lines += 1
        if len(self._buffer) >= _BUFFERED_LINES:
            self._flush()

    def describe_last(self, before: int) -> str:
        """Describes in parentheses how many files are malformed beyond the first `before`, and the last of them."""
        num_files = self.num_lines - before
        return f" ({num_files:,} files are malformed; {self._last[0]}: {self._last[1]})" if num_files else ""

    def _flush(self) -> None:
        if self._buffer:
            columns = zip(*self._buffer, strict=True)
            arrays = [pa.array(list(cells), field.type) for cells, field in zip(columns, MALFORMED_SCHEMA, strict=True)]
            self._writer.write(pa.RecordBatch.from_arrays(arrays, schema=MALFORMED_SCHEMA))
            self._buffer = []


def canonical_type(arrow_type: pa.DataType) -> pa.DataType:
    """Returns the type of the same values in the usual layout: no dictionary, no large and no view type.

    Decimal numbers become float64, or int64 without decimals; durations and times of day become float64, in seconds.
    Numbers of 16 bits become float32, since Arrow cannot compare them.
    """
    if pa.types.is_float16(arrow_type):
        return pa.float32()
    if pa.types.is_decimal(arrow_type) and arrow_type.scale == 0 and arrow_type.precision <= _INT64_DIGITS:
        return pa.int64()
    if pa.types.is_decimal(arrow_type) or pa.types.is_duration(arrow_type) or pa.types.is_time(arrow_type):
        return pa.float64()
    if pa.types.is_dictionary(arrow_type):
        return canonical_type(arrow_type.value_type)
    if pa.types.is_large_string(arrow_type) or pa.types.is_string_view(arrow_type):
        return pa.string()
    if pa.types.is_large_binary(arrow_type) or pa.types.is_binary_view(arrow_type):
        return pa.binary()
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        return pa.list_(canonical_type(arrow_type.value_type))
    if pa.types.is_fixed_size_list(arrow_type):
        return pa.list_(canonical_type(arrow_type.value_type), arrow_type.list_size)
    if pa.types.is_struct(arrow_type):
        return pa.struct([(field.name, canonical_type(field.type)) for field in arrow_type])
    return arrow_type


def canonical_schema(schema: pa.Schema) -> pa.Schema:
    """Returns the columns in canonical types. Of metadata, only `SOURCE_TYPE` says from what numbers are converted."""
    return pa.schema(
        [
            pa.field(field.name, canonical_type(field.type), metadata=_source_type_metadata(field.type))
            for field in schema
        ]
    )


def _source_type_metadata(arrow_type: pa.DataType) -> dict[bytes, str] | None:
    is_converted = pa.types.is_decimal(arrow_type) or pa.types.is_duration(arrow_type) or pa.types.is_time(arrow_type)
    return {SOURCE_TYPE: str(arrow_type)} if is_converted else None


def conform_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Returns the columns of `schema`, by name and in its types.

    Only names and types count: files differ in their metadata, and in which columns they declare nullable.
    """
    return pa.RecordBatch.from_arrays([_convert(batch[field.name], field.type) for field in schema], schema=schema)


def _convert(values: pa.Array, arrow_type: pa.DataType) -> pa.Array:
    if pa.types.is_duration(values.type) or pa.types.is_time(values.type):
        width = pa.int32() if pa.types.is_time32(values.type) else pa.int64()
        return pc.divide(values.cast(width).cast(pa.int64()).cast(pa.float64()), _UNITS_PER_SECOND[values.type.unit])
    if pa.types.is_decimal(values.type):  # by way of its digits, since Arrow's own cast is off in the last place
        return values.cast(pa.string()).cast(arrow_type)
    return values.cast(arrow_type)


def equal_lists(values: pa.Array, size: int, num_lists: int, mask: pa.BooleanArray | None = None) -> pa.ListArray:
    """Returns lists of `size` consecutive values each; null where `mask` is true."""
    return pa.ListArray.from_arrays(list_offsets(np.full(num_lists, size)), values, mask=mask)


def printable_text(text: bytes) -> str:
    """Decodes UTF-8, with escapes in place of other bytes, also of those that a transcoder has let through."""
    try:
        decoded = text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        decoded = text.decode("utf-8", "backslashreplace")
    return _ESCAPED.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", decoded).rstrip("\r\n")


def unreadable_error(
    path: str, problem: object, required: str, kind: str = "", *, options: Sequence[str] = ("format",)
) -> DataMissing:
    """Returns the error for data that exists, but is not as the recipe says. `options` are those that may be wrong."""
    return DataMissing(
        f"{path} cannot be read{f' as {kind}' if kind else ''}: {problem}",
        required=required,
        where=path,
        remedy=f"set {option_names(*options)} if the file is written in another way; else write the file again: an "
        "interrupted copy leaves an incomplete file",
    )
