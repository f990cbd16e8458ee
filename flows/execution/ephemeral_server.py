"""A Prefect server for the time of one run, where the user has none.

Prefect would start one by itself, but only when the first flow asks, and it would outlive a killed run. This one
starts when the run says so, while the engines are imported, and ends with the run. Its database stays in the state
folder, so `prefect server start` with the same PREFECT_HOME shows all runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from filelock import FileLock

from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.tethered_process import free_port, starting

# Schedules, automations and late runs are a standing server's business.
_WITHOUT = ("SCHEDULER", "LATE_RUNS", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP", "FOREMAN", "TRIGGERS")


@contextlib.contextmanager
def prefect_api() -> Iterator[Callable[[], Callable[[], None]]]:
    """Call before prefect is imported, which learns the server's address here.

    Yields a function that starts the server; that one returns another, which waits until the API answers. With
    PREFECT_API_URL set there is nothing to start and nothing to wait for.
    """
    if settings().prefect_api_url is not None:
        yield lambda: lambda: None
        return
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = api
    environment = {
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT_UI_ENABLED": "false",
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in _WITHOUT},
    }
    command = [
        *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "error"),
    ]
    lock = FileLock(settings().home / "prefect.lock")
    with contextlib.ExitStack() as stack:
        stack.callback(os.environ.pop, "PREFECT_API_URL")

        def start() -> Callable[[], None]:
            # The first server of a state folder makes the database: a second one at the same time has to wait for that.
            lock.acquire()
            stack.callback(lock.release)
            wait_until_ready = stack.enter_context(
                starting(
                    command,
                    is_ready=lambda: _answers(f"{api}/health"),
                    log=settings().logs / "prefect-server.log",
                    environment=environment,
                )
            )
            stack.callback(_drain)

            def wait() -> None:
                wait_until_ready()
                lock.release()

            return wait

        yield start


def _drain() -> None:
    """Send the logs and events that are still queued, which would otherwise look for the server after its end."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
