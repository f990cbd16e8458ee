"""Writes encoded rows inside Spark's workers, so that they are not sent back through Spark."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.models.features.encoder import Encoder, encode_splits

NUM_ROWS = "num_rows"


def write_partition(
    encoder: Encoder | None, split_column: str, partition: str, folder: Path, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Writes one partition to `folder/SPLIT/NUMBER.parquet` and yields its number of rows.

    Rows are sorted by `split_column`; the column `partition` holds the partition's number. Without an encoder, rows
    are written unchanged and belong to one split. Files are complete or absent, even if two attempts run at once.
    """
    writers: dict[str, pq.ParquetWriter] = {}
    targets: dict[str, tuple[Path, Path]] = {}
    num_rows = 0
    for batch in batches:
        raw_batches = [batch.drop_columns([partition])]
        for encoded in raw_batches if encoder is None else encode_splits(encoder, split_column, [batch]):
            if not encoded.num_rows:
                continue
            name = encoded[split_column][0].as_py()
            rows = encoded.drop_columns([split_column])
            if name not in writers:
                final = folder / name / f"{batch[partition][0].as_py():06d}.parquet"
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
