"""Decodes the files that a table's columns name: the rows then have pixels and samples in place of names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.models.features.statistics.arrow_arrays import list_offsets
from bloomery.models.media.config import ImageDecoding, MediaUnreadable
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.ingest.file_columns.column_files import ColumnFiles, map_files, open_columns
from bloomery.tasks.ingest.option_names import place_of_options
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream

_MAX_ROWS = 256  # of a batch, whose files are decoded at the same time
_MAX_UNREADABLE_ROWS = 16  # of a batch; they may be followed by large files
_BATCH_BYTES = 64 << 20
_AUDIO_ROW_GROUP_SIZE = 256
_CHANNELS = {"L": 1, "RGB": 3}


def decode_files(rows: RowStream, data: DataSource, malformed: MalformedWriter) -> RowStream:
    """Returns the rows with uint8 pixels (channel after channel, row after row) or float32 samples as lists.

    A missing or blank name is null. A row with a file that does not exist or cannot be decoded is malformed, with
    its number among the rows that were read, from 1. Memory is bounded by one batch, whatever the number of files.

    Raises:
        RecipeInvalid: there is no such column, or it holds neither texts nor bytes.
        DataMissing: there is no such folder, images have several sizes without a `size`, or no row is left.
    """
    if not data.media:
        return rows
    columns = open_columns(rows, data)
    schema = rows.schema
    for column in columns:
        item = pa.uint8() if isinstance(column.decoding, ImageDecoding) else pa.float32()
        schema = schema.set(schema.get_field_index(column.column), pa.field(column.column, pa.list_(item)))
    row_group_size = _row_group_size(columns)
    decoder = _Decoder(columns, data.description, malformed, min(_MAX_ROWS, row_group_size))
    return RowStream(schema, decoder.decode(rows, schema), min(rows.row_group_size, row_group_size))


def _row_group_size(columns: Sequence[ColumnFiles]) -> int:
    """Returns how many rows take about as much memory as a row group of images in a folder."""
    num_bytes = 0
    for column in columns:
        if not isinstance(column.decoding, ImageDecoding) or column.decoding.size is None:
            return _AUDIO_ROW_GROUP_SIZE
        height, width = column.decoding.size
        num_bytes += _CHANNELS[column.decoding.mode] * height * width
    return max(1, min(ROW_GROUP_SIZE, _BATCH_BYTES // num_bytes))


class _Decoder:
    def __init__(self, columns: Sequence[ColumnFiles], source: str, malformed: MalformedWriter, max_rows: int) -> None:
        self._columns, self._source, self._malformed, self._max_rows = columns, source, malformed, max_rows
        self._shapes: dict[str, tuple[str, tuple[int, ...]]] = {}  # the first image of a column and its shape
        self._num_rows = self._num_kept = 0
        self._first_reason = ""

    def decode(self, rows: RowStream, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yields the rows whose files can be decoded. The first batch is one row, since its files may be large.

        Rows without a file are small, and may be followed by others, so the size of images limits a batch, too.
        """
        length = 1
        for batch in rows.batches:
            start = 0
            while start < batch.num_rows:
                part = self._decode_batch(batch.slice(start, length), schema)
                start += length
                if not part.num_rows:
                    length = min(2 * length, _MAX_UNREADABLE_ROWS, self._max_rows)
                    continue
                length = max(1, min(self._max_rows, 2 * length, _BATCH_BYTES * part.num_rows // max(1, part.nbytes)))
                yield part
        if self._num_rows and not self._num_kept:
            raise DataMissing(
                f"none of {self._num_rows:,} rows has files that can be decoded; {self._first_reason}",
                required="rows with files that exist and open",
                where=f"{place_of_options()}, media",
                remedy="correct `folder`, `kind` or the options of decoding, or convert the files",
            )

    def _decode_batch(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        reasons: dict[int, tuple[str, str]] = {}
        decoded: dict[str, list[np.ndarray | None]] = {}
        for column in self._columns:
            decoded[column.column] = self._decode_column(column, batch[column.column].to_pylist(), reasons)
        for row, (text, reason) in sorted(reasons.items()):
            self._malformed.add(self._source, self._num_rows + row + 1, text, reason)
            self._first_reason = self._first_reason or f"row {self._num_rows + row + 1}: {text}: {reason}"
        kept = [row for row in range(batch.num_rows) if row not in reasons]
        self._num_rows += batch.num_rows
        self._num_kept += len(kept)
        taken = batch.take(pa.array(kept, pa.int64()))
        arrays = [
            _to_lists([decoded[field.name][row] for row in kept], field.type) if field.name in decoded else values
            for field, values in zip(schema, taken.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _decode_column(
        self, column: ColumnFiles, values: Sequence[str | bytes | None], reasons: dict[int, tuple[str, str]]
    ) -> list[np.ndarray | None]:
        """Returns the values of each row's file; None for a row without one, or whose reason is added to `reasons`."""
        sources = [value if value and value.strip() else None for value in values]
        results = dict(map_files(column, [source for source in dict.fromkeys(sources) if source], column.decode))
        contents: list[np.ndarray | None] = []
        for row, source in enumerate(sources):
            result = None if source is None else results[source]
            name = source if isinstance(source, str) else ""
            if isinstance(result, MediaUnreadable):
                reasons.setdefault(row, (name, f"column {column.column}: {result}"))
            elif result is not None and isinstance(column.decoding, ImageDecoding):
                self._require_equal_sizes(column, name or "a value", result.shape)
            contents.append(None if isinstance(result, MediaUnreadable) else result)
        return contents

    def _require_equal_sizes(self, column: ColumnFiles, name: str, shape: tuple[int, ...]) -> None:
        first_name, first_shape = self._shapes.setdefault(column.column, (name, shape))
        if shape != first_shape:
            sizes = " and ".join(f"{height} x {width}" for _, height, width in (first_shape, shape))
            raise DataMissing(
                f"images have the sizes {sizes} (height x width)",
                required="one size, if there is no `size`",
                where=f"{place_of_options()}, media: {column.column}, {first_name} and {name}",
                remedy="set `size` to a height and a width: all images are resized to it",
            )


def _to_lists(values: Sequence[np.ndarray | None], arrow_type: pa.ListType) -> pa.ListArray:
    """Returns each array as a list; null for None."""
    offsets = list_offsets([0 if value is None else value.size for value in values])
    flat = [value.reshape(-1) for value in values if value is not None]
    content = pa.array(np.concatenate(flat) if flat else [], arrow_type.value_type)
    mask = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(offsets, content, mask=mask)
