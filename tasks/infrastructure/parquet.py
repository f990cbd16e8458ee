"""Parquet files whose bytes depend on their rows alone, however the rows came."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file, digest_of_table
from bloomery.tasks.infrastructure import personal_data

ROW_GROUP_SIZE = 65_536


class RowWriter:
    """Writes batches to one file, in row groups of `group_rows` rows wherever a batch began or ended.

    Memory is bounded by one row group and one batch. The columns `encrypted` can be read with the key alone.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, group_rows: int = ROW_GROUP_SIZE, encrypted: Collection[str] = ()
    ) -> None:
        self._path = path
        self._encrypted = sorted(set(encrypted) & set(schema.names))
        self._digests: list[str] = []
        self.schema = pa.schema([pa.field(field.name, field.type) for field in schema])
        words = [field.name for field in schema if pa.types.is_string(field.type)]
        # Numbers rarely repeat enough for a dictionary to pay for being tried.
        self._writer = pq.ParquetWriter(
            path,
            self.schema,
            compression="zstd",
            use_dictionary=words,
            encryption_properties=personal_data.encryption_properties(self._encrypted),
        )
        self._group_rows = group_rows
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0
        self.num_rows = 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            while self._num_waiting:
                self._write_group()
        self._writer.close()

    def write(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        self._waiting.append(pa.RecordBatch.from_arrays(batch.columns, schema=self.schema))
        self._num_waiting += batch.num_rows
        self.num_rows += batch.num_rows
        while self._num_waiting >= self._group_rows:
            self._write_group()

    def digest(self) -> str:
        """The sha256 of the closed file; of its rows, where a part is encrypted, whose bytes differ every time."""
        return digest_of_document(self._digests) if self._encrypted else digest_of_file(self._path)

    def _write_group(self) -> None:
        rows = pa.Table.from_batches(self._waiting, self.schema)
        # Combined, since the writer's pages follow the ends of chunks.
        group = rows.slice(0, self._group_rows).combine_chunks()
        self._writer.write_table(group, row_group_size=self._group_rows)
        if self._encrypted:
            self._digests.append(digest_of_table(group))
        rest = rows.slice(self._group_rows)
        self._waiting, self._num_waiting = rest.to_batches(), rest.num_rows


def write_rows(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write all `batches` to `path` and return the number of rows."""
    with RowWriter(path, schema) as writer:
        for batch in batches:
            writer.write(batch)
    return writer.num_rows


def row_group_size_of(path: Path) -> int:
    """The number of rows that what is made of the file's rows has in a row group: as many as the file's own groups.

    Whoever wrote large rows chose small groups, and they stay small.
    """
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return max(1, min(ROW_GROUP_SIZE, max(groups))) if len(groups) > 1 else ROW_GROUP_SIZE


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The file's rows in its order, at most a row group's worth at a time; encrypted columns need the key."""
    # Arrow's own way of reading ahead holds the whole file.
    with pq.ParquetFile(path, pre_buffer=False, decryption_properties=personal_data.decryption_properties()) as file:
        for batch in file.iter_batches(row_group_size_of(path), columns=columns):
            yield batch.replace_schema_metadata(None)
