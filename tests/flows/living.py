"""What tests of running pipelines look for: processes of a state folder, and a condition that comes true in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def of_this_folder(home: Path) -> list[psutil.Process]:
    """Processes that were started for this state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BLOOMERY_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Callable[[], Any], timeout_s: float = 120, step_s: float = 0.05) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(step_s)
    raise AssertionError("waited in vain")
