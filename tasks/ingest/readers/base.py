"""What every reader gives: batches of one schema; and where lines go that are no rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE, RowWriter

MALFORMED_SCHEMA = pa.schema(
    [("file", pa.string()), ("line", pa.int64()), ("text", pa.string()), ("reason", pa.string())],
)
MAX_TEXT_LENGTH = 1_000
_BUFFERED = 4_096
_ESCAPED = re.compile("[\udc80-\udcff]")  # as Python's surrogateescape writes them


class RowStream(NamedTuple):
    """Batches that all have `schema`, to be written in row groups of `group_rows` rows."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    group_rows: int = ROW_GROUP_SIZE


class MalformedWriter:
    """Lines and files that are no rows, written to one Parquet file as they come."""

    def __init__(self, path: Path, *, is_encrypted: bool = False) -> None:
        self._writer = RowWriter(path, MALFORMED_SCHEMA, encrypted=["text"] if is_encrypted else [])
        self._waiting: list[tuple[str, int | None, str, str]] = []
        self.num = 0

    def __enter__(self) -> MalformedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType) -> None:
        if kind is None:
            self._flush()
        self._writer.__exit__(kind, error, trace)

    def digest(self) -> str:
        return self._writer.digest()

    def add(self, file: str, line: int | None, text: str, reason: str) -> None:
        """Put aside line number `line` of `file`, or the whole file; long texts are cut."""
        self._waiting.append((file, line, text[:MAX_TEXT_LENGTH], reason))
        self.num += 1
        if len(self._waiting) >= _BUFFERED:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            columns = zip(*self._waiting, strict=True)
            arrays = [pa.array(list(cells), field.type) for cells, field in zip(columns, MALFORMED_SCHEMA, strict=True)]
            self._writer.write(pa.RecordBatch.from_arrays(arrays, schema=MALFORMED_SCHEMA))
            self._waiting = []


def canonical_type(kind: pa.DataType) -> pa.DataType:
    """The type with the same values in their one usual layout: no dictionary, no large or view form."""
    if pa.types.is_dictionary(kind):
        return canonical_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(canonical_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, canonical_type(field.type)) for field in kind])
    return kind


def canonical_schema(schema: pa.Schema) -> pa.Schema:
    """The columns in plain types, without metadata."""
    return pa.schema([(field.name, canonical_type(field.type)) for field in schema])


def conform_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema`, by name and in its types.

    Types and names alone are compared: files differ in their notes, and in what they say may be null.
    """
    return pa.RecordBatch.from_arrays([batch[field.name].cast(field.type) for field in schema], schema=schema)


def printable_text(text: bytes) -> str:
    """Text in UTF-8 as a string; bytes that are none are spelt out, also those that a transcoder has let through."""
    try:
        told = text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        told = text.decode("utf-8", "backslashreplace")
    return _ESCAPED.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", told).rstrip("\r\n")


def unreadable_error(path: str, failure: object, required: str, kind: str = "") -> DataMissing:
    """The error for data that is there, but is not what its format says."""
    return DataMissing(
        f"{path} cannot be read{f' as {kind}' if kind else ''}: {failure}",
        required=required,
        where=path,
        remedy="mend the recipe's `data` if it says another format than the file has; else write the data again, "
        "since a file that was cut off while it was copied ends like this",
    )
