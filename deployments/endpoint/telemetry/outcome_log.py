"""What became of requests, also of those that were refused and so are not in the log of predictions.

Counted in memory; a thread adds a line to a file every few seconds, if there is anything to tell.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bloomery.data_contracts.serving.prediction_log import OUTCOMES, Outcome

_MOST_RULES = 100  # of one line; columns that nobody knows are named by clients
_MOST_LETTERS = 200
_OTHERS = "others"
_KEPT_SECONDS = 90 * 86_400
_log = logging.getLogger("bloomery.endpoint")


class Outcomes:
    """Give it to those that are told of requests."""

    def __init__(self, folder: Path, seconds_between_writes: float = 5.0) -> None:
        self._folder, self._seconds = folder, seconds_between_writes
        self._statuses: dict[str, Counter[int]] = defaultdict(Counter)
        self._broken: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="outcomes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __call__(self, version: str, status: int, problems: Sequence[Mapping[str, Any]]) -> None:
        """One request was answered with `status`, by or on behalf of a version."""
        with self._lock:
            self._statuses[version][int(status)] += 1
            for problem in problems:
                broken = self._broken.setdefault(version, Counter())
                rule = f"{problem.get('column')}: {problem.get('rule')}"[:_MOST_LETTERS]
                broken[rule if rule in broken or len(broken) < _MOST_RULES else _OTHERS] += 1

    def end(self) -> None:
        """Afterwards all that was counted is in the file."""
        self._ending.set()
        self._thread.join()

    def _write_on(self) -> None:
        self._forget_old()
        while not self._ending.wait(self._seconds):
            self._write()
        self._write()

    def _write(self) -> None:
        with self._lock:
            statuses, self._statuses = self._statuses, defaultdict(Counter)
            broken, self._broken = self._broken, {}
        if not statuses:
            return
        now = datetime.now(UTC)
        told = [
            Outcome(at=now, version=version, statuses=dict(counted), broken=dict(broken.get(version, {})))
            for version, counted in statuses.items()
        ]
        try:
            day = self._folder / f"day={now:%Y-%m-%d}"
            day.mkdir(parents=True, exist_ok=True)
            # One write, so that a line is whole or is the last.
            with (day / f"{os.getpid()}{OUTCOMES}").open("a", encoding="utf-8") as file:
                file.write("".join(one.model_dump_json() + "\n" for one in told))
        except OSError:
            _log.exception("outcomes of requests could not be written; answering goes on")

    def _forget_old(self) -> None:
        for path in self._folder.glob(f"day=*/*{OUTCOMES}"):
            try:
                if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                    path.unlink()
            except OSError:
                continue  # another process of the endpoint was quicker
