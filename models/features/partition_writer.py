"""Summarizes and writes rows inside Spark's workers, so that they are not sent back through Spark."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, cut_at_splits, encode_batches, partial_statistics

NUM_ROWS = "num_rows"


class RowColumns(NamedTuple):
    """The columns of a batch in Spark: those of the data under the keys of `names`, and two of its own.

    `split` holds the name of a row's split, `partition` the number of its partition.
    """

    names: Mapping[str, str]
    split: str
    partition: str

    def select_data(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the columns of the data, under their own names."""
        rows = batch.drop_columns([self.split, self.partition])
        return rows.rename_columns([self.names[alias] for alias in rows.schema.names])


def partition_statistics(
    features: Features, columns: RowColumns, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """`partial_statistics` of the batches of one partition."""
    return partial_statistics(features, map(columns.select_data, batches))


def write_partition(
    encoder: Encoder | None, columns: RowColumns, folder: Path, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Writes one partition to `folder/SPLIT/NUMBER.parquet` and yields its number of rows.

    Rows are sorted by split. Without an encoder they are written unchanged. Files are complete or absent, even if two
    attempts run at once.
    """
    writers: dict[str, pq.ParquetWriter] = {}
    targets: dict[str, tuple[Path, Path]] = {}
    num_rows = 0
    for batch in batches:
        for name, raw_rows in cut_at_splits(columns.select_data(batch), batch[columns.split]):
            is_training = name == "train"
            parts = [raw_rows] if encoder is None else encode_batches(encoder, [raw_rows], is_training=is_training)
            for rows in parts:
                if name not in writers:
                    final = folder / name / f"{batch[columns.partition][0].as_py():06d}.parquet"
                    final.parent.mkdir(parents=True, exist_ok=True)
                    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
                    targets[name] = (temporary, final)
                    writers[name] = pq.ParquetWriter(temporary, rows.schema, compression="lz4", use_dictionary=False)
                writers[name].write_batch(rows)
                num_rows += rows.num_rows
    for name, writer in writers.items():
        writer.close()
        os.replace(*targets[name])
    yield pa.RecordBatch.from_arrays([pa.array([num_rows], pa.int64())], names=[NUM_ROWS])
