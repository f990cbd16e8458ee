"""Reads the energy counters of Intel's and AMD's processors (RAPL) from Linux.

Read before a run begins, so nothing here needs torch.

Source: Linux, "Power Capping Framework" (Documentation/power/powercap/powercap.rst).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bloomery.data_contracts.errors import EngineMissing

ROOT = Path("/sys/class/powercap")
_PAUSE_S = 0.05  # in which any processor uses measurable energy, even when idle


class EnergyCounter:
    """The joules of all processor packages since it was created, with caches and without memory.

    They include idle power and all other processes.
    """

    def __init__(self, zones: list[Path]) -> None:
        self._files = [zone / "energy_uj" for zone in zones]
        self._ranges = [_read_number(zone / "max_energy_range_uj") for zone in zones]
        self._previous = [_read_number(file) for file in self._files]
        self._total_uj = 0

    def read(self) -> float:
        """The joules so far. Call it at least once per wraparound of the counter, which takes a minute or more."""
        current = [_read_number(file) for file in self._files]
        for before, after, max_range in zip(self._previous, current, self._ranges, strict=True):
            self._total_uj += after - before if after >= before else after - before + max_range
        self._previous = current
        return self._total_uj / 1e6


def open_energy_counter(root: Path = ROOT, wait: Callable[[float], object] = time.sleep) -> EnergyCounter:
    """The energy counter of this machine.

    Raises:
        EngineMissing: there is none, it is not readable, or it does not advance, as in most virtual machines.
    """
    # Zones within a package (intel-rapl:0:0) are part of it; `psys` counts other parts of the board.
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _read_name(zone).startswith("package")]
    if not zones:
        raise _missing(f"no processor package has a counter in {root}", root)
    try:
        counter = EnergyCounter(zones)
        before = counter.read()
        wait(_PAUSE_S)
        has_advanced = counter.read() > before
    except (OSError, ValueError) as failure:
        raise _missing(f"the energy counter cannot be read: {failure}", zones[0]) from failure
    if not has_advanced:
        raise stuck_counter_error(zones[0])
    return counter


def stuck_counter_error(where: Path = ROOT) -> EngineMissing:
    return _missing("the energy counter does not advance", where)


def _read_name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _missing(problem: str, where: Path) -> EngineMissing:
    return EngineMissing(
        f"energy cannot be measured: {problem}",
        required=f"{ROOT}/intel-rapl:*/energy_uj of a package, readable by this user and advancing",
        where=str(where),
        remedy="run on a physical machine (most virtual machines hide the counter) as a user who may read it "
        "(`sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj`), or weigh latency instead of energy in "
        "budget.objective: on one thread, energy follows the time",
    )
