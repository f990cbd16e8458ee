"""What a stage took: seconds, seconds of the processors, and their energy, measured where the machine tells it.

Nothing is sent anywhere, nothing is written, and the arithmetic of the stage is not touched.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bloomery.data_contracts.errors import EngineMissing
from bloomery.data_contracts.records.records import ResourceUsage

# A busy core of a server's processor: its thermal design power by its cores is 4 W (280 W, 64 cores) to 12 W.
WATTS_PER_CORE = 8.0
_READ_EVERY_S = 20.0  # a counter comes round after a minute or more


class _Watched:
    """An energy counter that is read often enough while a stage works; `joules` is None once it cannot be read."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read, self._ended = read, threading.Event()
        self._start: float = read()
        self.joules: float | None = 0.0
        self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_READ_EVERY_S):
            self._note()

    def _note(self) -> None:
        try:
            self.joules = None if self.joules is None else self._read() - self._start
        except (OSError, ValueError):
            self.joules = None

    def end(self) -> float | None:
        self._ended.set()
        self._thread.join()
        self._note()
        return self.joules


def _counter() -> _Watched | None:
    from bloomery.models.profiling.rapl import open_energy_counter

    try:
        return _Watched(open_energy_counter().read)
    except (EngineMissing, OSError, ValueError) as failure:
        logging.getLogger(__name__).info("energy is estimated: %s", failure)
        return None


@contextmanager
def measure_usage(*, on_gpu: bool = False) -> Iterator[Callable[[], ResourceUsage]]:
    """Yields what tells the effort since the `with` block began; to be asked once, in it or after it.

    The seconds of the processors are those of this process and of its children that have ended.
    """
    watched = _counter()
    began, worked = time.perf_counter(), _processor_seconds()

    def told() -> ResourceUsage:
        seconds, busy = time.perf_counter() - began, _processor_seconds() - worked
        joules = None if watched is None else watched.end()
        return ResourceUsage(
            seconds=seconds,
            cpu_seconds=busy,
            joules=busy * WATTS_PER_CORE if joules is None else joules,
            is_measured=joules is not None,
            used_gpu=on_gpu,
        )

    try:
        yield told
    finally:
        if watched is not None:
            watched.end()


def _processor_seconds() -> float:
    """User and system, of this process and its ended children."""
    return sum(os.times()[:4])
