"""Measures the resource usage of a stage: seconds, CPU seconds, and CPU energy, where the machine has a counter.

Sends and writes nothing, and does not change the arithmetic of the stage.
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

# Thermal design power per core of server processors: 4 W (280 W, 64 cores) to 12 W.
WATTS_PER_CORE = 8.0
_READ_INTERVAL_S = 20.0  # a counter overflows after a minute or more


class _EnergyMeter:
    """Reads an energy counter often enough to notice overflows; `joules` is None once it cannot be read."""

    def __init__(self, read_joules: Callable[[], float]) -> None:
        self._read, self._ended = read_joules, threading.Event()
        self._start: float = read_joules()
        self.joules: float | None = 0.0
        self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_READ_INTERVAL_S):
            self._update()

    def _update(self) -> None:
        try:
            self.joules = None if self.joules is None else self._read() - self._start
        except (OSError, ValueError):
            self.joules = None

    def end(self) -> float | None:
        self._ended.set()
        self._thread.join()
        self._update()
        return self.joules


def _start_meter() -> _EnergyMeter | None:
    from bloomery.models.profiling.rapl import open_energy_counter

    try:
        return _EnergyMeter(open_energy_counter().read)
    except (EngineMissing, OSError, ValueError) as failure:
        logging.getLogger(__name__).info("energy is estimated: %s", failure)
        return None


@contextmanager
def measure_usage(*, use_gpu: bool = False) -> Iterator[Callable[[], ResourceUsage]]:
    """Yields a function that returns the usage since the `with` block began; call it once, inside or after the block.

    CPU seconds are those of this process and of its ended children.
    """
    meter = _start_meter()
    start, start_cpu = time.perf_counter(), _cpu_seconds()

    def read_usage() -> ResourceUsage:
        seconds, cpu_seconds = time.perf_counter() - start, _cpu_seconds() - start_cpu
        joules = None if meter is None else meter.end()
        return ResourceUsage(
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            joules=cpu_seconds * WATTS_PER_CORE if joules is None else joules,
            is_measured=joules is not None,
            used_gpu=use_gpu,
        )

    try:
        yield read_usage
    finally:
        if meter is not None:
            meter.end()


def _cpu_seconds() -> float:
    """User and system time of this process and its ended children."""
    return sum(os.times()[:4])
