"""The prediction log: its files, their columns, and how to read them.

Each day has a folder, `day=2026-11-25`. The file that is being written is an Arrow stream, readable up to its last
complete batch; finished files are Parquet. A row has the fields below, the request's values in `columns` and the
returned values in `prediction`. Beside them are JSON lines that count the outcomes of requests, also of rejected ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.files import atomic_path

STREAM_SUFFIX, PARQUET_SUFFIX, OUTCOMES_SUFFIX = ".arrows", ".parquet", ".outcomes.jsonl"
CHAMPION, CANARY, SHADOW = "champion", "canary", "shadow"
LOG_FIELDS = (
    pa.field("at", pa.timestamp("us", "UTC")),  # of the response
    pa.field("request", pa.string()),
    pa.field("row", pa.int32()),  # its position in the request
    pa.field("version", pa.string()),  # a bento's tag
    pa.field("role", pa.string()),
    pa.field("seconds", pa.float64()),  # from the head of the request to its response
    pa.field("run_seconds", pa.float64()),  # of the network's run, for a batch of `batch_size` rows
    pa.field("batch_size", pa.int32()),
)


class RequestOutcome(Document):
    """The number of requests of a version since the previous line, by the status of the response.

    `violations` counts rows by the column and rule that they broke, as far as the responses reported them.
    """

    at: datetime
    version: str
    statuses: dict[int, int]
    violations: dict[str, int]


def read_log(folder: Path, columns: list[str], since: date | None = None) -> Iterator[pa.Table]:
    """The `columns` of the log in `folder`, file by file, oldest first, without the days before `since`.

    A file that the endpoint converts to Parquet meanwhile is read as Parquet; one that it deletes is skipped.
    """
    for path in _files(folder, since):
        if path.suffix == PARQUET_SUFFIX:
            with contextlib.suppress(FileNotFoundError):
                yield pq.read_table(path, columns=columns)
        elif path.suffix == STREAM_SUFFIX:
            if batches := read_stream(path):
                yield pa.Table.from_batches(batches).select(columns)
            elif (parquet := path.with_suffix(PARQUET_SUFFIX)).is_file():
                yield pq.read_table(parquet, columns=columns)


def read_outcomes(folder: Path, since: date | None = None) -> Iterator[RequestOutcome]:
    """The outcomes of requests that `folder` has. An incomplete line is skipped."""
    for path in _files(folder, since):
        if path.name.endswith(OUTCOMES_SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                for line in path.read_text(encoding="utf-8").splitlines():
                    with contextlib.suppress(ValidationError):
                        yield RequestOutcome.model_validate_json(line)


def _files(folder: Path, since: date | None) -> list[Path]:
    first = "" if since is None else f"day={since:%Y-%m-%d}"
    return [path for path in sorted(folder.glob("day=*/*")) if path.parent.name >= first]


def read_stream(path: Path) -> list[pa.RecordBatch]:
    """The complete batches of a stream that may be cut off."""
    batches: list[pa.RecordBatch] = []
    with contextlib.suppress(pa.ArrowException, OSError), pa.ipc.open_stream(path.read_bytes()) as stream:
        batches.extend(stream)
    return batches


def convert_to_parquet(stream: Path) -> None:
    """Replaces the stream by a Parquet file, or deletes it if it has no complete batch."""
    batches = read_stream(stream)
    if batches:
        with atomic_path(stream.with_suffix(PARQUET_SUFFIX)) as temporary:
            pq.write_table(pa.Table.from_batches(batches), temporary, compression="zstd")
    stream.unlink()
