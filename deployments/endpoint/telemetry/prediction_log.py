"""What was asked and answered, kept as Parquet, without a request waiting for it.

Answers are put in a queue; a thread writes them once a second to an Arrow stream, which is whole up to its last batch
whatever happens, and turns the stream into a Parquet file when it is long or old enough. What a killed process has left
is turned into one by the next.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.requests.columnar_rows import as_table
from bloomery.data_contracts.serving.prediction_log import FIELDS, PARQUET, STREAM, as_parquet
from bloomery.deployments.endpoint.inference.bounded_queue import Backlog
from bloomery.deployments.endpoint.inference.micro_batcher import Answered

_log = logging.getLogger("bloomery.endpoint")


class Bounds(NamedTuple):
    """How much is kept, where. `waiting_rows` is what may be in memory; further rows are not logged, but counted."""

    waiting_rows: int = 20_000
    seconds_between_writes: float = 1.0
    file_bytes: int = 16_000_000  # of a stream, before it becomes Parquet
    file_seconds: float = 600.0
    bytes: int = 2_000_000_000  # of all files; the oldest go first


class PredictionLog:
    """Give it to those that are told of answers."""

    def __init__(self, folder: Path, bounds: Bounds, lose: Callable[[int], None]) -> None:
        """`lose` is called with the number of rows that could not be logged."""
        self._folder, self._bounds, self._lose = folder, bounds, lose
        self._backlog = Backlog(bounds.waiting_rows, lose)
        self._file: _File | None = None
        self._num_files = 0
        self._pause = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __call__(self, answered: Answered) -> None:
        self._backlog.put(answered)

    def end(self) -> None:
        """Afterwards all that was answered lies in Parquet files."""
        self._pause.set()
        self._backlog.end()
        self._thread.join()

    def _write_on(self) -> None:
        self._safely(self._take_over)
        while not self._backlog.is_ended:
            self._write(self._backlog.take(self._bounds.file_seconds))
            # What comes meanwhile is written with the next.
            self._pause.wait(self._bounds.seconds_between_writes)
        self._write(self._backlog.take())
        self._safely(self._close)

    def _safely(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except (OSError, pa.ArrowException):
            _log.exception("the log of predictions could not be written; answering goes on")
            return False
        return True

    def _write(self, waiting: list[Answered]) -> None:
        # Many requests are one batch: to write each by itself would cost more than to answer it.
        for _, group in itertools.groupby(waiting, key=lambda answered: (answered.version, answered.role)):
            together = list(group)
            if not self._safely(functools.partial(self._append, together)):
                self._lose(sum(len(answered.given) for answered in together))
                self._file = None  # what it has is kept; the next attempt takes another
        if self._file is not None and self._file.is_full(self._bounds):
            self._safely(self._close)

    def _append(self, together: list[Answered]) -> None:
        batch = as_batch(together)
        if self._file is not None and self._file.schema != batch.schema:  # another version reads other columns
            self._close()
        if self._file is None:
            self._num_files += 1
            now = time.gmtime()
            day = self._folder / time.strftime("day=%Y-%m-%d", now)
            day.mkdir(parents=True, exist_ok=True)
            name = f"{time.strftime('%H%M%S', now)}-{os.getpid()}-{self._num_files}{STREAM}"
            self._file = _File(day / name, batch.schema)
        self._file.write(batch)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
            as_parquet(file.path)
            _forget_oldest(self._folder, self._bounds.bytes)

    def _take_over(self) -> None:
        """Make Parquet of the streams whose processes have ended."""
        for path in sorted(self._folder.glob(f"day=*/*{STREAM}")):
            pid = int(path.stem.split("-")[1])
            if pid == os.getpid() or not psutil.pid_exists(pid):
                as_parquet(path)


class _File:
    """A stream that is being written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._began = time.monotonic()
        self._sink = path.open("wb")
        self._stream = pa.ipc.new_stream(self._sink, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._stream.write_batch(batch)
        self._sink.flush()

    def is_full(self, bounds: Bounds) -> bool:
        return self._sink.tell() >= bounds.file_bytes or time.monotonic() - self._began >= bounds.file_seconds

    def close(self) -> None:
        self._stream.close()
        self._sink.close()


def as_batch(together: Sequence[Answered]) -> pa.RecordBatch:
    """What one version has answered in one role, as it is logged."""
    version, role = together[0].version, together[0].role
    epoch = time.time() - time.perf_counter()  # the time of day of perf_counter's zero
    sizes = np.array([size for one in together for size in one.sizes])
    began = np.repeat([began for one in together for began in one.began], sizes)
    per_run = np.array([len(one.given) for one in together])
    ended = np.repeat([one.ended for one in together], per_run)
    num_rows = int(sizes.sum())
    always = [
        pa.array(np.rint((epoch + ended) * 1e6).astype(np.int64)).cast(FIELDS[0].type),
        pa.array([request for one in together for request in one.requests], pa.string()).take(
            pa.array(np.repeat(np.arange(len(sizes)), sizes))
        ),
        pa.array(np.arange(num_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes), pa.int32()),
        pa.repeat(version.tag, num_rows),
        pa.repeat(role, num_rows),
        pa.array(ended - began),
        pa.array(np.repeat([one.run_seconds for one in together], per_run)),
        pa.array(np.repeat(per_run, per_run), pa.int32()),
    ]
    rows = as_table([one.rows for one in together])
    told = version.as_table(np.concatenate([one.given for one in together]))
    nested = {
        "columns": _struct(rows.select(impersonal(version.contract, rows.column_names))),
        "answer": _struct(told),
    }
    fields = [*FIELDS, *(pa.field(name, array.type) for name, array in nested.items())]
    return pa.RecordBatch.from_arrays([*always, *nested.values()], schema=pa.schema(fields))


def impersonal(contract: Contract, names: Sequence[str]) -> list[str]:
    """The columns that say nothing of a person, as the contract marks them: the others are not logged."""
    return [name for name in names if name not in contract.personal_columns]


def _struct(table: pa.Table) -> pa.StructArray:
    (batch,) = table.combine_chunks().to_batches()
    return pa.StructArray.from_arrays(batch.columns, names=table.column_names)


def _forget_oldest(folder: Path, most_bytes: int) -> None:
    files = sorted(folder.glob(f"day=*/*{PARQUET}"))
    sizes = [path.stat().st_size for path in files]
    excess = sum(sizes) - most_bytes
    for path, size in zip(files, sizes, strict=True):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # where it was the day's last
