"""The status of the services of `bloomery up`: a small file that the supervisor writes and every process may read."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import psutil
from pydantic import ValidationError

from bloomery.data_contracts.documents.documents import Document
from bloomery.tasks.infrastructure.tethered_process import is_running

STATUS_FOLDER = "up"
STATUS_FILE = "status.json"
HOME_MARKER = "BLOOMERY_UP"  # in the environment of every process that serves this state folder

ServiceKind = Literal["prefect", "mlflow", "worker", "endpoint", "registration"]
ServiceState = Literal["starting", "up", "failed"]


class Service(Document):
    """A service. `url` is empty if it serves no requests, and `pid` is None if Bloomery has not started it."""

    name: str
    kind: ServiceKind
    url: str = ""
    pid: int | None = None
    state: ServiceState = "starting"
    restarts: int = 0
    reason: str = ""  # of the last failure
    log: str = ""


class ServiceStatus(Document):
    """All services. `started` distinguishes the supervisor from a later process with the same id."""

    pid: int
    started: float
    is_settled: bool = False  # each service has responded once, or failed
    services: tuple[Service, ...] = ()

    @property
    def prefect_api_url(self) -> str | None:
        url = self._url_of("prefect")
        return None if url is None else f"{url}/api"

    @property
    def mlflow_url(self) -> str | None:
        """The address of MLflow's web interface."""
        return self._url_of("mlflow")

    def _url_of(self, kind: ServiceKind) -> str | None:
        return next((server.url for server in self.services if server.kind == kind), None)


def read_service_status(home: Path) -> ServiceStatus | None:
    """Returns the status in the state folder `home`; None if no supervisor runs, even if a killed one left a file."""
    try:
        status = ServiceStatus.model_validate_json((home / STATUS_FOLDER / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return status if is_running(status.pid, status.started) else None


def find_processes(home: Path) -> list[psutil.Process]:
    """Returns every running process of the services in `home`, with the supervisor."""
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(HOME_MARKER) == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return processes


def terminate_processes(processes: list[psutil.Process], grace_s: float = 10.0) -> None:
    """Terminates the processes, and kills those that still run after `grace_s` seconds."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, survivors = psutil.wait_procs(processes, timeout=grace_s)
    for process in survivors:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(survivors, timeout=grace_s)
