"""Answers that wait for somebody who is slower than the endpoint, so many rows and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable

from bloomery.deployments.endpoint.inference.micro_batcher import Answered


class Backlog:
    """Put into by the event loop, which never waits; taken from by one thread."""

    def __init__(self, most_rows: int, lose: Callable[[int], None]) -> None:
        """`lose` is called with the number of rows for which there is no room."""
        self._most_rows, self._lose = most_rows, lose
        self._waiting: list[Answered] = []
        self._num_rows = 0
        self._lock = threading.Lock()
        self._there = threading.Event()
        self.is_ended = False

    def put(self, answered: Answered) -> None:
        num_rows = len(answered.given)
        with self._lock:
            is_room = self._num_rows + num_rows <= self._most_rows
            if is_room:
                self._num_rows += num_rows
                self._waiting.append(answered)
        if not is_room:
            self._lose(num_rows)
        elif not self._there.is_set():
            self._there.set()

    def take(self, timeout_s: float | None = None) -> list[Answered]:
        """All that waits, as soon as something does; nothing after `timeout_s`, and at the end."""
        if not self.is_ended:
            self._there.wait(timeout_s)
        with self._lock:
            self._there.clear()
            waiting, self._waiting = self._waiting, []
            self._num_rows = 0
        return waiting

    def end(self) -> None:
        """Whoever waits in `take` goes on."""
        self.is_ended = True
        self._there.set()
