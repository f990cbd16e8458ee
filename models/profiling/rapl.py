"""The energy that a processor has taken, where it counts it and Linux tells: RAPL, of Intel's and AMD's processors.

Read before a run begins, so nothing here needs torch.

Source: Linux, "Power Capping Framework" (Documentation/power/powercap/powercap.rst).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bloomery.data_contracts.errors import EngineMissing

ROOT = Path("/sys/class/powercap")
_PAUSE_S = 0.05  # in which any processor takes what is counted, also while it rests


class EnergyCounter:
    """The joules of all processors together since it was made; each holds its caches, and its memory does not count.

    Whatever runs on them is in it, and what they take at rest.
    """

    def __init__(self, zones: list[Path]) -> None:
        self._files = [zone / "energy_uj" for zone in zones]
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._before = [_number(file) for file in self._files]
        self._total_uj = 0

    def read(self) -> float:
        """To be asked again before a counter has come round twice, which takes a minute or more."""
        now = [_number(file) for file in self._files]
        for before, after, most in zip(self._before, now, self._ranges, strict=True):
            self._total_uj += after - before if after >= before else after - before + most
        self._before = now
        return self._total_uj / 1e6


def open_energy_counter(root: Path = ROOT, wait: Callable[[float], object] = time.sleep) -> EnergyCounter:
    """The counter of this machine.

    Raises:
        EngineMissing: there is none, it may not be read, or it stands still, as in most virtual machines.
    """
    # Parts of a package (intel-rapl:0:0) are counted in it; `psys` counts what else is on the board.
    zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _name(zone).startswith("package")]
    if not zones:
        raise _missing(f"no processor tells of its energy in {root}", root)
    try:
        counter = EnergyCounter(zones)
        before = counter.read()
        wait(_PAUSE_S)
        has_moved = counter.read() > before
    except (OSError, ValueError) as failure:
        raise _missing(f"the energy that the processor counts cannot be read: {failure}", zones[0]) from failure
    if not has_moved:
        raise stuck_counter_error(zones[0])
    return counter


def stuck_counter_error(where: Path = ROOT) -> EngineMissing:
    return _missing("the counter of the processor's energy stands still", where)


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _missing(found: str, where: Path) -> EngineMissing:
    return EngineMissing(
        f"energy cannot be measured: {found}",
        required=f"{ROOT}/intel-rapl:*/energy_uj of a package, which this user may read and which counts",
        where=str(where),
        remedy="run on a machine of its own (most virtual machines do not let it be read) as a user who may "
        "(`sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj`), or weigh latency in budget.objective in place "
        "of energy: on one thread it follows the time",
    )
