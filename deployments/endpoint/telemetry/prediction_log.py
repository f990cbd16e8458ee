"""The prediction log: requests with their predictions, written to Parquet without delaying a response.

Batches go to a queue; a thread appends them once per second to an Arrow stream, which is complete up to its last batch
after a kill, and converts the stream to Parquet when it is large or old enough. The next process converts the streams
of a killed one.
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
from bloomery.data_contracts.requests.columnar_rows import to_table
from bloomery.data_contracts.serving.prediction_log import LOG_FIELDS, PARQUET_SUFFIX, STREAM_SUFFIX, convert_to_parquet
from bloomery.deployments.endpoint.inference.bounded_queue import BoundedQueue
from bloomery.deployments.endpoint.inference.micro_batcher import PredictionBatch

_log = logging.getLogger("bloomery.endpoint")


class LogLimits(NamedTuple):
    """Limits of the log. Rows beyond `pending_rows` in memory are counted as dropped."""

    pending_rows: int = 20_000
    write_interval_s: float = 1.0
    file_bytes: int = 16_000_000  # of a stream, before it becomes Parquet
    file_seconds: float = 600.0
    total_bytes: int = 2_000_000_000  # of all files; the oldest are removed first


class PredictionLog:
    """A listener to prediction batches."""

    def __init__(self, folder: Path, limits: LogLimits, on_dropped: Callable[[int], None]) -> None:
        """`on_dropped` is called with the number of rows that could not be logged."""
        self._folder, self._limits, self._on_dropped = folder, limits, on_dropped
        self._queue = BoundedQueue(limits.pending_rows, on_dropped)
        self._file: _StreamFile | None = None
        self._num_files = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __call__(self, batch: PredictionBatch) -> None:
        self._queue.put(batch)

    def close(self) -> None:
        """Writes all batches to Parquet files, then ends."""
        self._closing.set()
        self._queue.close()
        self._thread.join()

    def _run(self) -> None:
        self._log_errors(self._convert_orphans)
        while not self._queue.is_closed:
            self._write(self._queue.take_all(self._limits.file_seconds))
            # Batches that arrive during the pause are written together.
            self._closing.wait(self._limits.write_interval_s)
        self._write(self._queue.take_all())
        self._log_errors(self._close_file)

    def _log_errors(self, step: Callable[[], None]) -> bool:
        """Runs `step`. Logs a failure and returns False."""
        try:
            step()
        except (OSError, pa.ArrowException):
            _log.exception("the prediction log could not be written; serving continues")
            return False
        return True

    def _write(self, batches: list[PredictionBatch]) -> None:
        # One Arrow batch for many requests: a batch for each would cost more than its prediction.
        for _, group in itertools.groupby(batches, key=lambda batch: (batch.version, batch.role)):
            version_batches = list(group)
            if not self._log_errors(functools.partial(self._append, version_batches)):
                self._on_dropped(sum(len(batch.outputs) for batch in version_batches))
                self._file = None  # its complete batches are kept; the next attempt begins another file
        if self._file is not None and self._file.is_full(self._limits):
            self._log_errors(self._close_file)

    def _append(self, batches: list[PredictionBatch]) -> None:
        record_batch = to_log_batch(batches)
        if self._file is not None and self._file.schema != record_batch.schema:  # another version reads other columns
            self._close_file()
        if self._file is None:
            self._num_files += 1
            now = time.gmtime()
            day = self._folder / time.strftime("day=%Y-%m-%d", now)
            day.mkdir(parents=True, exist_ok=True)
            name = f"{time.strftime('%H%M%S', now)}-{os.getpid()}-{self._num_files}{STREAM_SUFFIX}"
            self._file = _StreamFile(day / name, record_batch.schema)
        self._file.write(record_batch)

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
            convert_to_parquet(file.path)
            _remove_oldest(self._folder, self._limits.total_bytes)

    def _convert_orphans(self) -> None:
        """Converts the streams of ended processes to Parquet."""
        for path in sorted(self._folder.glob(f"day=*/*{STREAM_SUFFIX}")):
            pid = int(path.stem.split("-")[1])
            if pid == os.getpid() or not psutil.pid_exists(pid):
                convert_to_parquet(path)


class _StreamFile:
    """An open Arrow stream."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._opened_at = time.monotonic()
        self._sink = path.open("wb")
        self._stream = pa.ipc.new_stream(self._sink, schema)

    def write(self, record_batch: pa.RecordBatch) -> None:
        self._stream.write_batch(record_batch)
        self._sink.flush()

    def is_full(self, limits: LogLimits) -> bool:
        return self._sink.tell() >= limits.file_bytes or time.monotonic() - self._opened_at >= limits.file_seconds

    def close(self) -> None:
        self._stream.close()
        self._sink.close()


def to_log_batch(batches: Sequence[PredictionBatch]) -> pa.RecordBatch:
    """Returns the log rows of batches that one version served in one role."""
    version, role = batches[0].version, batches[0].role
    epoch = time.time() - time.perf_counter()  # the time of day at which perf_counter was 0
    request_sizes = np.array([size for batch in batches for size in batch.request_sizes])
    start_times = np.repeat([start for batch in batches for start in batch.start_times], request_sizes)
    batch_sizes = np.array([len(batch.outputs) for batch in batches])
    end_times = np.repeat([batch.end_time for batch in batches], batch_sizes)
    num_rows = int(request_sizes.sum())
    fixed_columns = [
        pa.array(np.rint((epoch + end_times) * 1e6).astype(np.int64)).cast(LOG_FIELDS[0].type),
        pa.array([request_id for batch in batches for request_id in batch.request_ids], pa.string()).take(
            pa.array(np.repeat(np.arange(len(request_sizes)), request_sizes))
        ),
        pa.array(np.arange(num_rows) - np.repeat(np.cumsum(request_sizes) - request_sizes, request_sizes), pa.int32()),
        pa.repeat(version.tag, num_rows),
        pa.repeat(role, num_rows),
        pa.array(end_times - start_times),
        pa.array(np.repeat([batch.run_seconds for batch in batches], batch_sizes)),
        pa.array(np.repeat(batch_sizes, batch_sizes), pa.int32()),
    ]
    rows = to_table([batch.rows for batch in batches])
    predictions = version.predictions_table(np.concatenate([batch.outputs for batch in batches]))
    nested = {
        "columns": _to_struct(rows.select(non_personal_columns(version.contract, rows.column_names))),
        "prediction": _to_struct(predictions),
    }
    fields = [*LOG_FIELDS, *(pa.field(name, array.type) for name, array in nested.items())]
    return pa.RecordBatch.from_arrays([*fixed_columns, *nested.values()], schema=pa.schema(fields))


def non_personal_columns(contract: Contract, names: Sequence[str]) -> list[str]:
    """Returns the columns that the contract does not mark as personal; only these are logged."""
    return [name for name in names if name not in contract.personal_columns]


def _to_struct(table: pa.Table) -> pa.StructArray:
    (batch,) = table.combine_chunks().to_batches()
    return pa.StructArray.from_arrays(batch.columns, names=table.column_names)


def _remove_oldest(folder: Path, max_bytes: int) -> None:
    files = sorted(folder.glob(f"day=*/*{PARQUET_SUFFIX}"))
    sizes = [path.stat().st_size for path in files]
    excess = sum(sizes) - max_bytes
    for path, size in zip(files, sizes, strict=True):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # if it was the day's last file
