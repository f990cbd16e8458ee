"""A Prefect server for one run, if the user has none.

Prefect can start an ephemeral server itself, but only when the first flow needs it, and that server outlives a killed
run. This one starts while the engines are imported, and ends with the run. Its database stays in the state folder, so
`prefect server start` with the same PREFECT_HOME shows all runs.
"""

from __future__ import annotations

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

from filelock import FileLock

from bloomery.tasks.infrastructure.python_processes import module_command
from bloomery.tasks.infrastructure.restarting_server import RestartingServer, listen_on_loopback
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Waiting, emit

_API = "prefect.server.api.server:create_app"
# Schedules, automations and late runs need a permanent server.
_DISABLED_SERVICES = ("SCHEDULER", "LATE_RUNS", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP", "FOREMAN", "TRIGGERS")


@contextlib.contextmanager
def ephemeral_prefect_api() -> Iterator[Callable[[], Callable[[], None]]]:
    """Sets the server's address; enter before prefect is imported.

    Yields a function that starts the server and returns another, which waits until the API responds. With
    PREFECT_API_URL set, both do nothing.
    """
    if settings().prefect_api_url is not None:
        yield lambda: lambda: None
        return
    listener = listen_on_loopback()
    api = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    os.environ["PREFECT_API_URL"] = api
    environment = {
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT_UI_ENABLED": "false",
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in _DISABLED_SERVICES},
    }
    command = module_command("bloomery.tasks.infrastructure.uvicorn_process", str(listener.fileno()), _API)
    server = RestartingServer(
        command,
        listener,
        lambda timeout_s: _responds(f"{api}/health", timeout_s),
        settings().logs / "prefect-server.log",
        environment,
        lambda reason: emit(Waiting("run", f"Prefect's server is started again: {reason}")),
    )
    lock = FileLock(settings().home / "prefect.lock")
    with contextlib.ExitStack() as stack:
        stack.callback(os.environ.pop, "PREFECT_API_URL")
        stack.callback(server.stop)

        def start() -> Callable[[], None]:
            # The first server of a state folder creates the database; a concurrent second one has to wait for that.
            lock.acquire()
            stack.callback(lock.release)
            server.start()
            stack.callback(_drain)

            def wait() -> None:
                server.wait()
                lock.release()

            return wait

        yield start


def _drain() -> None:
    """Sends the queued logs and events while the server still runs."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)


def _responds(url: str, timeout_s: float) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
