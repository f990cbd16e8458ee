"""What tests of what runs look for: processes of a state folder, servers that answer, what comes true in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

# One, since to make a client takes 30 ms, a hundred times as long as to ask.
_CLIENT = httpx.Client(trust_env=False, timeout=5)


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


def wait_for(
    condition: Callable[[], Any], *, timeout_s: float = 120, step_s: float = 0.05, what: str = "a condition"
) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(step_s)
    raise AssertionError(f"waited in vain for {what}")


def answers(url: str) -> bool:
    try:
        return _CLIENT.get(url).is_success
    except httpx.HTTPError:
        return False
