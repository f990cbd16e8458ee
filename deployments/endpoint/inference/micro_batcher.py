"""Requests that are there in the same moment, answered together.

What the event loop has parsed in one turn is one run of the network: nobody waits for a timer, and under load a run
serves many. Where several were answered together, more are on the way, and the next run waits for a turn that brings
none. Rows are checked before, so a bad row is its client's alone.
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
from bloomery.data_contracts.requests.columnar_rows import CellRows, Row
from bloomery.data_contracts.serving.prediction_log import CHAMPION
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.models.features.statistics.arrow_arrays import Rows

_MOST_ROWS = 256  # of several requests together; a longer request is answered alone
_MOST_TOGETHER = 32  # requests that a run waits for; each further one would save little
_SECONDS_ALONE = 0.005  # a run that takes longer has a thread, so that others are heard meanwhile


class _Run:
    """The answers of one run of the network."""

    def __init__(self, version: Version, given: np.ndarray) -> None:
        self._version, self.given = version, given

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """As clients read them: of all at once, since numpy's cost is by the call."""
        return self._version.predictions(self.given)


class Given(NamedTuple):
    """The answers to the rows of one request."""

    run: _Run
    start: int
    stop: int

    @property
    def array(self) -> np.ndarray:
        """Probabilities float64 (B, K), or figures float64 (B,)."""
        return self.run.given[self.start : self.stop]

    @property
    def predictions(self) -> list[dict[str, Any]]:
        return self.run.predictions[self.start : self.stop]


Settle = Callable[[Given | Exception], None]


class Answered(NamedTuple):
    """Rows that were answered together, for whoever logs them: `sizes` says how many are of which request.

    `role` is champion, canary or shadow. The run of the network, with encoding, took `run_seconds`.
    """

    version: Version
    role: str
    rows: Rows  # as they came: in JSON, or as an Arrow stream
    given: np.ndarray
    requests: tuple[str, ...]
    sizes: tuple[int, ...]
    began: tuple[float, ...]
    ended: float
    run_seconds: float

    @property
    def batch(self) -> pa.RecordBatch:
        """The rows in the contract's types. To make them takes longer than to answer a row: not on the event loop."""
        return self.rows.batch if isinstance(self.rows, CellRows) else self.rows


class _Waiting(NamedTuple):
    rows: list[Row] | pa.RecordBatch
    request: str
    began: float
    settle: Settle


class Ticks:
    """The requests of one version, which answers as champion or as canary."""

    def __init__(self, version: Version, on_answered: Callable[[Answered], None], role: str = CHAMPION) -> None:
        self.version = version
        self._role = role
        self._on_answered = on_answered
        self._waiting: list[_Waiting] = []
        self._num_seen = 0  # of those that wait, a turn ago
        self._is_busy = False  # several were answered together last
        self._seconds_a_row = _timed(version)

    def ask(self, rows: list[Row] | pa.RecordBatch, request: str, began: float, settle: Settle) -> None:
        """`settle` is called once with the answers to checked rows, or why there are none, after this turn.

        That may be DataUnfit, where the recipe refuses a value.
        """
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._waiting.append(_Waiting(rows, request, began, settle))

    def _end_turn(self) -> None:
        num_waiting = len(self._waiting)
        if self._is_busy and self._num_seen < num_waiting < _MOST_TOGETHER:
            self._num_seen = num_waiting
            asyncio.get_running_loop().call_soon(self._end_turn)
            return
        self._num_seen, self._is_busy = 0, num_waiting > 1
        self._answer_all()

    def _answer_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for group in _groups(waiting):
            num_rows = sum(len(one.rows) for one in group)
            if num_rows * self._seconds_a_row < _SECONDS_ALONE:
                self._settle(group, *self._answers(group))
            else:
                asyncio.get_running_loop().create_task(self._answer_aside(group))

    async def _answer_aside(self, group: list[_Waiting]) -> None:
        self._settle(group, *await asyncio.to_thread(self._answers, group))

    def _answers(self, group: list[_Waiting]) -> tuple[Rows | None, np.ndarray | Exception, float]:
        """The rows, their answers or why there are none, and the seconds of the run."""
        began = time.perf_counter()
        try:
            rows = self._together(group)
            return rows, self.version.answers(rows), time.perf_counter() - began
        except Exception as failure:
            return None, failure, 0.0

    def _together(self, group: list[_Waiting]) -> Rows:
        first = group[0].rows
        if not isinstance(first, list):
            return first
        return self.version.check.columns([row for one in group for row in one.rows])

    def _settle(
        self, group: list[_Waiting], rows: Rows | None, given: np.ndarray | Exception, run_seconds: float
    ) -> None:
        if rows is None or isinstance(given, Exception):
            if len(group) > 1 and isinstance(given, DataUnfit):  # one of them is at fault: ask each alone
                for one in group:
                    self._settle([one], *self._answers([one]))
                return
            for one in group:
                one.settle(given if isinstance(given, Exception) else RuntimeError("no rows"))
            return
        run, start = _Run(self.version, given), 0
        for one in group:
            stop = start + len(one.rows)
            one.settle(Given(run, start, stop))
            start = stop
        self._on_answered(
            Answered(
                self.version,
                self._role,
                rows,
                given,
                tuple(one.request for one in group),
                tuple(len(one.rows) for one in group),
                tuple(one.began for one in group),
                time.perf_counter(),
                run_seconds,
            )
        )


def _groups(waiting: list[_Waiting]) -> list[list[_Waiting]]:
    """Those that are answered together, in their order. Rows that came as Arrow are answered alone."""
    groups: list[list[_Waiting]] = []
    num_rows = _MOST_ROWS
    for one in waiting:
        is_alone = not isinstance(one.rows, list)
        if is_alone or num_rows + len(one.rows) > _MOST_ROWS:
            groups.append([])
            num_rows = 0
        groups[-1].append(one)
        num_rows = _MOST_ROWS if is_alone else num_rows + len(one.rows)
    return groups


def _timed(version: Version) -> float:
    """Seconds for a row of the examples, the second time."""
    if not version.examples:
        return 0.0
    rows = version.check.columns(version.check.rows(version.request))
    began = time.perf_counter()
    version.answers(rows)
    return (time.perf_counter() - began) / rows.num_rows
