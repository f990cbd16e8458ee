"""Ends a worker whose server was killed, since it would otherwise keep the port."""

from __future__ import annotations

import os
import signal
import threading
import time

_POLL_INTERVAL_S = 1.0


def terminate_with_parent(parent_pid: int) -> None:
    """Starts a thread that sends SIGTERM to this process once `parent_pid` is no longer its parent.

    BentoML's server ends its workers itself, unless it was killed.
    """
    threading.Thread(target=_watch_parent, args=(parent_pid,), name="parent-watchdog", daemon=True).start()


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGTERM)
