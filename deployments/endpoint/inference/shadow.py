"""A shadow version: predicts for the champion's requests in a thread; its predictions go to the log only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.serving.prediction_log import SHADOW
from bloomery.deployments.endpoint.inference.bounded_queue import BoundedQueue
from bloomery.deployments.endpoint.inference.micro_batcher import PredictionBatch
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion

_MAX_PENDING_ROWS = 5_000
_log = logging.getLogger("bloomery.endpoint")


class Shadow:
    """A listener to the champion's batches that calls `on_batch` with the shadow's batches."""

    def __init__(
        self,
        version: LoadedVersion,
        on_batch: Callable[[PredictionBatch], None],
        on_dropped: Callable[[int], None],
    ) -> None:
        """`on_dropped` is called with the number of rows that the shadow skips because it is too slow or fails."""
        self.version = version
        self._on_batch, self._on_dropped = on_batch, on_dropped
        self._queue = BoundedQueue(_MAX_PENDING_ROWS, on_dropped)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __call__(self, batch: PredictionBatch) -> None:
        self._queue.put(batch)

    def close(self) -> None:
        """Predicts all queued rows, then ends."""
        self._queue.close()
        self._thread.join()

    def _run(self) -> None:
        while not self._queue.is_closed:
            self._process(self._queue.take_all())
        self._process(self._queue.take_all())  # batches that arrived during the last run

    def _process(self, batches: list[PredictionBatch]) -> None:
        for batch in batches:
            try:
                self._on_batch(self._predict(batch))
            except DataUnfit:
                self._on_dropped(len(batch.outputs))
            except Exception:  # a failure of the shadow must not affect the champion
                _log.exception("the shadow %s cannot predict", self.version.tag)
                self._on_dropped(len(batch.outputs))

    def _predict(self, champion: PredictionBatch) -> PredictionBatch:
        rows = champion.rows
        schema = self.version.row_check.schema
        if rows.schema != schema:  # the shadow reads other columns, or fewer
            rows = champion.record_batch.select(schema.names).cast(schema)
        start = time.perf_counter()
        outputs = self.version.predict(rows)
        end = time.perf_counter()
        return champion._replace(
            version=self.version, role=SHADOW, rows=rows, outputs=outputs, end_time=end, run_seconds=end - start
        )
