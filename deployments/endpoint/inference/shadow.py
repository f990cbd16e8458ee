"""A challenger that is asked all that the champion is asked, and whose answers only the log hears."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.serving.prediction_log import SHADOW
from bloomery.deployments.endpoint.inference.bounded_queue import Backlog
from bloomery.deployments.endpoint.inference.micro_batcher import Answered
from bloomery.deployments.endpoint.inference.model_version import Version

_MOST_WAITING_ROWS = 5_000
_log = logging.getLogger("bloomery.endpoint")


class Shadow:
    """Give it to those that are told of answers; `tell` is told of its own."""

    def __init__(self, version: Version, tell: Callable[[Answered], None], lose: Callable[[int], None]) -> None:
        """`lose` is called with the number of rows that it was too late for, or that it could not answer."""
        self.version = version
        self._tell, self._lose = tell, lose
        self._backlog = Backlog(_MOST_WAITING_ROWS, lose)
        self._thread = threading.Thread(target=self._answer_on, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __call__(self, answered: Answered) -> None:
        self._backlog.put(answered)

    def end(self) -> None:
        """Afterwards it has answered all that it was asked."""
        self._backlog.end()
        self._thread.join()

    def _answer_on(self) -> None:
        while not self._backlog.is_ended:
            self._answer(self._backlog.take())
        self._answer(self._backlog.take())  # what came while it answered others

    def _answer(self, waiting: list[Answered]) -> None:
        for answered in waiting:
            try:
                self._tell(self._answered(answered))
            except DataUnfit:
                self._lose(len(answered.given))
            except Exception:  # a challenger's fault is not the champion's
                _log.exception("the shadow %s cannot answer", self.version.tag)
                self._lose(len(answered.given))

    def _answered(self, champions: Answered) -> Answered:
        rows = champions.rows
        if rows.schema != self.version.check.schema:  # it reads other columns, or some of them
            rows = champions.batch.select(self.version.check.schema.names).cast(self.version.check.schema)
        began = time.perf_counter()
        given = self.version.answers(rows)
        ended = time.perf_counter()
        return champions._replace(
            version=self.version, role=SHADOW, rows=rows, given=given, ended=ended, run_seconds=ended - began
        )
