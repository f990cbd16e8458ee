"""A server that the supervisor starts, watches and restarts."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bloomery.tasks.infrastructure.service_status import Service, ServiceKind, ServiceState
from bloomery.tasks.infrastructure.tethered_process import slowdown, start_tethered, stop_tethered

MAX_PAUSE_S = 60.0  # the longest pause between two starts of a process that fails repeatedly
_START_TIMEOUT_S = 180.0  # within which a server must respond for the first time


@dataclass
class SupervisedProcess:
    """A server with its state."""

    name: str
    kind: ServiceKind
    command: list[str]
    is_ready: Callable[[], bool]
    log: Path
    url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None  # to run in; None for the supervisor's
    state: ServiceState = "starting"
    restarts: int = 0
    reason: str = ""
    tether: subprocess.Popen[bytes] | None = None
    pid: int | None = None  # of the server, a child of its tether; kept, since the search lists all processes
    next_start: float = 0.0  # monotonic; the time of its last start, or of the scheduled next one
    pause_s: float = 1.0

    def check(self) -> None:
        """Starts the server, or updates its state. Each failure doubles the pause before the next start."""
        now = time.monotonic()
        if self.tether is None:
            if now >= self.next_start:
                with self.log.open("ab") as stream:
                    self.tether = start_tethered(self.command, stream, self.environment, self.folder)
                self.next_start, self.state = now, "starting"
            return
        if self.pid is None:
            with contextlib.suppress(psutil.Error):
                self.pid = next((child.pid for child in psutil.Process(self.tether.pid).children()), None)
        code = self.tether.poll()
        if code is not None:
            self._schedule_restart(f"it ended with exit code {code}: {_last_line(self.log)}", now)
        elif self.state != "up" and self.is_ready():
            self.state, self.pause_s = "up", 1.0
        elif self.state == "starting" and now - self.next_start > _START_TIMEOUT_S * slowdown():
            stop_tethered(self.tether)
            self._schedule_restart(f"it did not respond within {_START_TIMEOUT_S:.0f} s: {_last_line(self.log)}", now)

    def _schedule_restart(self, reason: str, now: float) -> None:
        self.tether, self.pid, self.state, self.reason = None, None, "failed", reason
        self.restarts += 1
        self.next_start, self.pause_s = now + self.pause_s, min(2 * self.pause_s, MAX_PAUSE_S)

    def as_document(self) -> Service:
        return Service(
            name=self.name,
            kind=self.kind,
            url=self.url,
            pid=self.pid,
            state=self.state,
            restarts=self.restarts,
            reason=self.reason,
            log=str(self.log),
        )


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "its log is empty"
    return "it has no log"
