"""Writes and reads Parquet files. The bytes of a file depend on its rows alone, not on the batches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file, digest_of_table
from bloomery.tasks.infrastructure import personal_data

ROW_GROUP_SIZE = 65_536
_ROW_GROUP_VALUES = ROW_GROUP_SIZE * 1_024  # 256 MiB of float32


class RowWriter:
    """Writes batches to one file, in row groups of `row_group_size` rows whatever the size of the batches.

    Memory is bounded by one row group and one batch. Only the key decrypts the columns `encrypted`.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, row_group_size: int = ROW_GROUP_SIZE, encrypted: Collection[str] = ()
    ) -> None:
        self._path = path
        self._encrypted = sorted(set(encrypted) & set(schema.names))
        self._digests: list[str] = []
        self.schema = pa.schema([pa.field(field.name, field.type) for field in schema])
        text_columns = [field.name for field in schema if pa.types.is_string(field.type)]
        # Numbers rarely repeat often enough for a dictionary to be worth trying.
        self._writer = pq.ParquetWriter(
            path,
            self.schema,
            compression="zstd",
            use_dictionary=text_columns,
            encryption_properties=personal_data.encryption_properties(self._encrypted),
        )
        self._row_group_size = row_group_size
        self._buffer: list[pa.RecordBatch] = []
        self._num_buffered = 0
        self.num_rows = 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            while self._num_buffered:
                self._write_row_group()
        self._writer.close()

    def write(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        self._buffer.append(pa.RecordBatch.from_arrays(batch.columns, schema=self.schema))
        self._num_buffered += batch.num_rows
        self.num_rows += batch.num_rows
        while self._num_buffered >= self._row_group_size:
            self._write_row_group()

    def digest(self) -> str:
        """Returns the sha256 of the closed file, or of its rows where columns are encrypted: then the bytes vary."""
        return digest_of_document(self._digests) if self._encrypted else digest_of_file(self._path)

    def _write_row_group(self) -> None:
        rows = pa.Table.from_batches(self._buffer, self.schema)
        # Combined, since the writer's pages end where chunks end.
        group = rows.slice(0, self._row_group_size).combine_chunks()
        self._writer.write_table(group, row_group_size=self._row_group_size)
        if self._encrypted:
            self._digests.append(digest_of_table(group))
        remainder = rows.slice(self._row_group_size)
        self._buffer, self._num_buffered = remainder.to_batches(), remainder.num_rows


def row_group_size_for(num_values: int) -> int:
    """Returns the row group size for rows of this many values: smaller for wide rows, which bounds memory."""
    return max(1, min(ROW_GROUP_SIZE, _ROW_GROUP_VALUES // max(num_values, 1)))


def write_rows(
    path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], row_group_size: int = ROW_GROUP_SIZE
) -> int:
    """Writes all `batches` to `path` and returns the number of rows."""
    with RowWriter(path, schema, row_group_size) as writer:
        for batch in batches:
            writer.write(batch)
    return writer.num_rows


def row_group_size_of(path: Path) -> int:
    """Returns the row group size for a file that is derived from this one: the size of this file's groups.

    Large rows were written in small groups, and the groups stay small.
    """
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return max(1, min(ROW_GROUP_SIZE, max(groups))) if len(groups) > 1 else ROW_GROUP_SIZE


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yields the file's rows in order, at most a row group at a time. Encrypted columns need the key."""
    # Arrow's read-ahead would hold the whole file in memory.
    with pq.ParquetFile(path, pre_buffer=False, decryption_properties=personal_data.decryption_properties()) as file:
        for batch in file.iter_batches(row_group_size_of(path), columns=columns):
            rows = batch.replace_schema_metadata(None)
            # A name such as `a.list.element` is also the path of the items of an array `a`, which is then read too.
            yield rows if columns is None else rows.select(columns)
