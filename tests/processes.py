"""Helpers for tests that start processes: their list, servers that respond, and waiting for a condition."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

QUERY_INTERVAL_S = 0.3  # between two queries of Prefect's server, which spends a few milliseconds on each
# One client for all requests: creating a client takes 30 ms, a hundred times as long as a request.
_CLIENT = httpx.Client(trust_env=False, timeout=5)


def processes_of(home: Path) -> list[psutil.Process]:
    """Returns the running processes that were started with this state folder."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BLOOMERY_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def command_of(process: psutil.Process) -> str:
    """Returns the command line of a process, and "" once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for(
    condition: Callable[[], Any], *, timeout_s: float = 120, step_s: float = 0.05, what: str = "a condition"
) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(step_s)
    raise AssertionError(f"timeout of {timeout_s:g} s while waiting for {what}")


def responds(url: str) -> bool:
    try:
        return _CLIENT.get(url).is_success
    except httpx.HTTPError:
        return False
