"""A worker that does not outlive the server that started it, and would hold its port."""

from __future__ import annotations

import os
import signal
import threading
import time

_SECONDS_BETWEEN_LOOKS = 1.0


def end_with(parent: int) -> None:
    """Afterwards this process is told to end, as by SIGTERM, once `parent` is not its parent any more.

    BentoML's server ends its workers itself, unless it was killed.
    """
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
