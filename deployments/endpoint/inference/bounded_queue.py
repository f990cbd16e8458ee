"""A queue of prediction batches for a slower consumer, bounded by its number of rows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from bloomery.deployments.endpoint.inference.micro_batcher import PredictionBatch


class BoundedQueue:
    """The event loop puts batches and never waits; one thread takes them."""

    def __init__(self, max_rows: int, on_dropped: Callable[[int], None]) -> None:
        """`on_dropped` is called with the number of rows for which the queue has no room."""
        self._max_rows, self._on_dropped = max_rows, on_dropped
        self._batches: list[PredictionBatch] = []
        self._num_rows = 0
        self._lock = threading.Lock()
        self._not_empty = threading.Event()
        self.is_closed = False

    def put(self, batch: PredictionBatch) -> None:
        num_rows = len(batch.outputs)
        with self._lock:
            has_room = self._num_rows + num_rows <= self._max_rows
            if has_room:
                self._num_rows += num_rows
                self._batches.append(batch)
        if not has_room:
            self._on_dropped(num_rows)
        elif not self._not_empty.is_set():
            self._not_empty.set()

    def take_all(self, timeout_s: float | None = None) -> list[PredictionBatch]:
        """Waits for batches and returns all; returns none after `timeout_s`, or if the queue is closed and empty."""
        if not self.is_closed:
            self._not_empty.wait(timeout_s)
        with self._lock:
            self._not_empty.clear()
            batches, self._batches = self._batches, []
            self._num_rows = 0
        return batches

    def close(self) -> None:
        """Wakes the thread that waits in `take_all`."""
        self.is_closed = True
        self._not_empty.set()
