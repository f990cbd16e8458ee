"""The log of predictions: which files it has, what stands in them, and how they are read.

A day has a folder, `day=2026-11-25`. What is being written is an Arrow stream, whole up to its last batch; what is
done is Parquet. A row has the fields below, `columns` with what was asked, and `answer` with what was told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

STREAM, PARQUET = ".arrows", ".parquet"
CHAMPION, CANARY, SHADOW = "champion", "canary", "shadow"
FIELDS = (
    pa.field("at", pa.timestamp("us", "UTC")),  # of the answer
    pa.field("request", pa.string()),
    pa.field("row", pa.int32()),  # its place in the request
    pa.field("version", pa.string()),  # a bento's tag
    pa.field("role", pa.string()),
    pa.field("seconds", pa.float64()),  # from the head of the request to its answer
    pa.field("run_seconds", pa.float64()),  # of the network's run, which `together` rows shared
    pa.field("together", pa.int32()),
)


def read_log(folder: Path, columns: list[str]) -> Iterator[pa.Table]:
    """`columns` of what is logged in `folder`, file by file, oldest first."""
    for path in sorted(folder.glob("day=*/*")):
        if path.suffix == PARQUET:
            yield pq.read_table(path, columns=columns)
        elif path.suffix == STREAM and (batches := read_stream(path)):
            yield pa.Table.from_batches(batches).select(columns)


def read_stream(path: Path) -> list[pa.RecordBatch]:
    """The whole batches of a stream, which may be cut off behind them."""
    batches: list[pa.RecordBatch] = []
    with contextlib.suppress(pa.ArrowException, OSError), pa.ipc.open_stream(path.read_bytes()) as stream:
        batches.extend(stream)
    return batches


def as_parquet(stream: Path) -> None:
    """Afterwards a Parquet file stands in the stream's place; none if it has no whole batch."""
    batches = read_stream(stream)
    if batches:
        beside = stream.with_suffix(".tmp")
        pq.write_table(pa.Table.from_batches(batches), beside, compression="zstd")
        beside.replace(stream.with_suffix(PARQUET))
    stream.unlink()
