"""Micro-batching: requests that arrive in the same turn of the event loop share one run of the network.

No timer is involved, so a single client does not wait. If several requests shared a run, more are likely to follow, and
the next run waits for a turn without new requests. Rows are validated before, so an invalid row affects only its own
client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.requests.columnar_rows import ColumnarRows, Row
from bloomery.data_contracts.serving.prediction_log import CHAMPION
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.features.statistics.arrow_arrays import Rows

_MAX_BATCH_ROWS = 256  # of several requests; a larger request gets its own run
_MAX_BATCH_REQUESTS = 32  # for which a run waits; more would save little
_MAX_LOOP_SECONDS = 0.005  # longer runs use a thread, so that the event loop stays responsive


class BatchResult:
    """The outputs of one run of the network, and of an embedding the number of tokens of each row."""

    def __init__(self, version: LoadedVersion, outputs: np.ndarray, num_tokens: np.ndarray | None) -> None:
        self._version, self.outputs, self.num_tokens = version, outputs, num_tokens

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """The JSON predictions of all rows, formatted at once because numpy has a fixed cost per call."""
        return self._version.format_predictions(self.outputs)


class RequestResult(NamedTuple):
    """The rows `start` to `stop` of a batch: the result of one request."""

    batch: BatchResult
    start: int
    stop: int

    @property
    def outputs(self) -> np.ndarray:
        """Probabilities float64 (B, K), regression values float64 (B,), or vectors float32 (B, W)."""
        return self.batch.outputs[self.start : self.stop]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all rows of an embedding, without padding; 0 of another task."""
        return 0 if self.batch.num_tokens is None else int(self.batch.num_tokens[self.start : self.stop].sum())

    @property
    def predictions(self) -> list[dict[str, Any]]:
        return self.batch.predictions[self.start : self.stop]


class _Run(NamedTuple):
    """What a run of the network gives: its rows, their outputs or the exception, and its duration in seconds."""

    rows: Rows | None
    outputs: np.ndarray | Exception
    num_tokens: np.ndarray | None = None
    seconds: float = 0.0


OnResult = Callable[[RequestResult | Exception], None]


class PredictionBatch(NamedTuple):
    """One run of the network, for logs and metrics.

    `role` is champion, canary or shadow. `request_sizes` has the number of rows of each request, `start_times` and
    `end_time` are of `time.perf_counter`. `run_seconds` includes encoding.
    """

    version: LoadedVersion
    role: str
    rows: Rows  # as they arrived: from JSON, or from an Arrow stream
    outputs: np.ndarray
    request_ids: tuple[str, ...]
    request_sizes: tuple[int, ...]
    start_times: tuple[float, ...]
    end_time: float
    run_seconds: float

    @property
    def record_batch(self) -> pa.RecordBatch:
        """The rows in the contract's types. The conversion takes longer than a prediction: keep it off the loop."""
        return self.rows.batch if isinstance(self.rows, ColumnarRows) else self.rows


class _Request(NamedTuple):
    rows: list[Row] | pa.RecordBatch
    request_id: str
    start_time: float
    on_result: OnResult


class MicroBatcher:
    """The pending requests of one version."""

    def __init__(
        self, version: LoadedVersion, on_batch: Callable[[PredictionBatch], None], role: str = CHAMPION
    ) -> None:
        """`on_batch` is called after each run; `role` is champion or canary."""
        self.version = version
        self._role = role
        self._on_batch = on_batch
        self._pending: list[_Request] = []
        self._num_pending_last_turn = 0
        self._is_busy = False  # the last run served several requests
        self._seconds_per_row = _measure_seconds_per_row(version)

    def submit(self, rows: list[Row] | pa.RecordBatch, request_id: str, start_time: float, on_result: OnResult) -> None:
        """Queues validated rows. `on_result` is called once, after this turn, with their result or the exception.

        The exception may be DataUnfit, where the encoder rejects a value.
        """
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._pending.append(_Request(rows, request_id, start_time, on_result))

    def _end_turn(self) -> None:
        num_pending = len(self._pending)
        if self._is_busy and self._num_pending_last_turn < num_pending < _MAX_BATCH_REQUESTS:
            self._num_pending_last_turn = num_pending
            asyncio.get_running_loop().call_soon(self._end_turn)
            return
        self._num_pending_last_turn, self._is_busy = 0, num_pending > 1
        self._run_pending()

    def _run_pending(self) -> None:
        pending, self._pending = self._pending, []
        for requests in _group_requests(pending):
            num_rows = sum(len(request.rows) for request in requests)
            if num_rows * self._seconds_per_row < _MAX_LOOP_SECONDS:
                self._deliver(requests, self._run(requests))
            else:
                asyncio.get_running_loop().create_task(self._run_in_thread(requests))

    async def _run_in_thread(self, requests: list[_Request]) -> None:
        self._deliver(requests, await asyncio.to_thread(self._run, requests))

    def _run(self, requests: list[_Request]) -> _Run:
        start = time.perf_counter()
        try:
            rows = self._join_rows(requests)
            if self.version.is_embedding:
                outputs, num_tokens = self.version.predict_and_count(rows)
            else:
                outputs, num_tokens = self.version.predict(rows), None
            return _Run(rows, outputs, num_tokens, time.perf_counter() - start)
        except Exception as failure:
            return _Run(None, failure)

    def _join_rows(self, requests: list[_Request]) -> Rows:
        first = requests[0].rows
        if not isinstance(first, list):
            return first
        return self.version.row_check.to_columns([row for request in requests for row in request.rows])

    def _deliver(self, requests: list[_Request], run: _Run) -> None:
        rows, outputs = run.rows, run.outputs
        if rows is None or isinstance(outputs, Exception):
            if len(requests) > 1 and isinstance(outputs, DataUnfit):  # one request is at fault: run each alone
                for request in requests:
                    self._deliver([request], self._run([request]))
                return
            for request in requests:
                request.on_result(outputs if isinstance(outputs, Exception) else RuntimeError("no rows"))
            return
        batch, start = BatchResult(self.version, outputs, run.num_tokens), 0
        for request in requests:
            stop = start + len(request.rows)
            request.on_result(RequestResult(batch, start, stop))
            start = stop
        self._on_batch(
            PredictionBatch(
                self.version,
                self._role,
                rows,
                outputs,
                tuple(request.request_id for request in requests),
                tuple(len(request.rows) for request in requests),
                tuple(request.start_time for request in requests),
                time.perf_counter(),
                run.seconds,
            )
        )


def _group_requests(pending: list[_Request]) -> list[list[_Request]]:
    """Groups the requests that share a run, in their order. Each Arrow stream gets its own run."""
    groups: list[list[_Request]] = []
    num_rows = _MAX_BATCH_ROWS
    for request in pending:
        is_arrow = not isinstance(request.rows, list)
        if is_arrow or num_rows + len(request.rows) > _MAX_BATCH_ROWS:
            groups.append([])
            num_rows = 0
        groups[-1].append(request)
        num_rows = _MAX_BATCH_ROWS if is_arrow else num_rows + len(request.rows)
    return groups


def _measure_seconds_per_row(version: LoadedVersion) -> float:
    """Measures with the bento's example rows, which the self-test has run once before."""
    if not version.examples:
        return 0.0
    rows = version.row_check.to_columns(version.row_check.parse_json(version.example_request))
    start = time.perf_counter()
    version.predict(rows)
    return (time.perf_counter() - start) / rows.num_rows
