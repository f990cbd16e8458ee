"""A server that is started again when it ends or no longer responds.

This process owns the listening socket, and the server inherits it. While no server runs, connections wait in the
socket's backlog, so clients are not refused.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bloomery.data_contracts.errors import EngineMissing
from bloomery.tasks.infrastructure.python_processes import NEUTRAL_FOLDER
from bloomery.tasks.infrastructure.tethered_process import slowdown, start_tethered, stop_tethered, wait_until_ready

_CHECK_INTERVAL_S = 1.0
_PROBE_INTERVAL_S = 5.0
_UNRESPONSIVE_S = 60.0  # on an idle machine
_STARTING_S = 180.0  # the same for a server that has not responded since it was started
_MAX_RESTARTS = 10
_MAX_EARLY_RESTARTS = 2  # before it has responded for the first time
_LAST_OWN_EXIT_CODE = 128  # a tether ends with a greater one if its server was killed
_BACKLOG = 1024


def listen_on_loopback() -> socket.socket:
    """Returns a listening socket on a free port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    listener.set_inheritable(True)
    return listener


class RestartingServer:
    """A tethered server on an inherited socket, which a thread watches."""

    def __init__(
        self,
        command: Sequence[str],
        listener: socket.socket,
        is_responsive: Callable[[float], bool],
        log: Path,
        environment: Mapping[str, str],
        on_restart: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`is_responsive(timeout_s)` sends a request; `on_restart` is called with the reason for each restart."""
        self._command = command
        self._listener = listener
        self._is_responsive = is_responsive
        self._log = log
        self._environment = environment
        self._on_restart = on_restart
        self._lock = threading.Lock()  # held while the server is started or stopped
        self._ended = threading.Event()
        self._tether: subprocess.Popen[bytes] | None = None
        self._has_responded = False  # since it was started
        self.num_restarts = 0

    def start(self) -> None:
        self._has_responded = False
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as stream:
            # Engines import from the folder that they run in; see `NEUTRAL_FOLDER`.
            self._tether = start_tethered(
                self._command, stream, self._environment, NEUTRAL_FOLDER, (self._listener.fileno(),)
            )

    def wait(self, timeout_s: float = 120) -> None:
        """Waits until the server responds, and watches it from then on. If it is killed before, it is started again.

        Raises:
            EngineMissing: it ends by itself, is killed repeatedly, or does not respond in time.
        """
        for restarts_left in range(_MAX_EARLY_RESTARTS, -1, -1):
            assert self._tether is not None
            try:
                wait_until_ready(self._tether, lambda: self._is_responsive(2.0), self._command, self._log, timeout_s)
                break
            except EngineMissing:
                if not restarts_left or (self._tether.poll() or 0) <= _LAST_OWN_EXIT_CODE:
                    raise
                self._restart(f"it ended with exit code {self._tether.returncode}")
        self._has_responded = True
        threading.Thread(target=self._watch, name="server-watch", daemon=True).start()

    def stop(self) -> None:
        """Ends the server and closes its socket."""
        self._ended.set()
        with self._lock:
            if self._tether is not None:
                stop_tethered(self._tether)
            self._listener.close()

    def _watch(self) -> None:
        next_probe = time.monotonic() + _PROBE_INTERVAL_S
        while not self._ended.wait(_CHECK_INTERVAL_S):
            assert self._tether is not None
            if self._tether.poll() is not None:
                self._restart(f"it ended with exit code {self._tether.returncode}")
            elif time.monotonic() >= next_probe:
                limit_s = (_UNRESPONSIVE_S if self._has_responded else _STARTING_S) * slowdown()
                if self._responds_within(limit_s):
                    self._has_responded = True
                elif self._tether.poll() is None:
                    self._restart(f"it did not respond for {limit_s:.0f} s")
                next_probe = time.monotonic() + _PROBE_INTERVAL_S

    def _responds_within(self, limit_s: float) -> bool:
        """Whether the server responds to a probe in time. Returns as soon as the server ends.

        A probe that still waits in the backlog would be answered by the next server, which this thread has to start.
        """
        assert self._tether is not None
        responses: list[bool] = []
        probe = threading.Thread(
            target=lambda: responses.append(self._is_responsive(limit_s)), name="server-probe", daemon=True
        )
        probe.start()
        while probe.is_alive() and self._tether.poll() is None and not self._ended.is_set():
            probe.join(_CHECK_INTERVAL_S)
        return bool(responses) and responses[0]

    def _restart(self, reason: str) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            assert self._tether is not None
            stop_tethered(self._tether)
            self.num_restarts += 1
            if self.num_restarts > _MAX_RESTARTS:
                self._ended.set()
                self._listener.close()  # clients are refused from now on, instead of waiting
                return
            self._on_restart(reason)
            self.start()
