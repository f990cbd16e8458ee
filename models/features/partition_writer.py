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
    encoder: Encoder | None, part: str, partition: str, folder: Path, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Writes one partition to `folder/SPLIT/NUMBER.parquet` and yields its number of rows.

    Rows are sorted by `split_column`; the column `partition` holds the partition's number. Without an encoder, rows
    are written unchanged and belong to one split. Files are complete or absent, even if two attempts run at once.
    """
    writers: dict[str, pq.ParquetWriter] = {}
    targets: dict[str, tuple[Path, Path]] = {}
    num_rows = 0
    for batch in batches:
        plain = [batch.drop_columns([partition])]
        for piece in plain if encoder is None else encode_splits(encoder, part, [batch]):
            if not piece.num_rows:
                continue
            name = piece[part][0].as_py()
            rows = piece.drop_columns([part])
            if name not in writers:
                final = folder / name / f"{batch[partition][0].as_py():06d}.parquet"
                final.parent.mkdir(parents=True, exist_ok=True)
                beside = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
                targets[name] = (beside, final)
                writers[name] = pq.ParquetWriter(beside, rows.schema, compression="lz4", use_dictionary=False)
            writers[name].write_batch(rows)
            num_rows += rows.num_rows
    for name, writer in writers.items():
        writer.close()
        os.replace(*targets[name])
    yield pa.RecordBatch.from_arrays([pa.array([num_rows], pa.int64())], names=[NUM_ROWS])
