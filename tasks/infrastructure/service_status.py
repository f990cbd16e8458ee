"""What `bloomery up` has started on this machine: one small file, which a supervisor writes and everybody may read."""

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
HOME_MARKER = "BLOOMERY_UP"  # in the environment of every process that belongs to what stands in this state folder

ServiceKind = Literal["prefect", "mlflow", "worker", "endpoint", "registration"]
ServiceState = Literal["starting", "up", "failed"]


class Service(Document):
    """One of them. `url` is empty where nobody asks it, and `pid` where it belongs to somebody else."""

    name: str
    kind: ServiceKind
    url: str = ""
    pid: int | None = None
    state: ServiceState = "starting"
    restarts: int = 0
    why: str = ""  # it ended last time
    log: str = ""


class ServiceStatus(Document):
    """All of them. The supervisor is told apart from a later process of the same number by when it `started`."""

    pid: int
    started: float
    is_settled: bool = False  # each has answered once, or failed
    servers: tuple[Service, ...] = ()

    @property
    def prefect_api_url(self) -> str | None:
        url = self._url_of("prefect")
        return None if url is None else f"{url}/api"

    @property
    def mlflow_url(self) -> str | None:
        """Where a person looks at runs and versions."""
        return self._url_of("mlflow")

    def _url_of(self, kind: ServiceKind) -> str | None:
        return next((server.url for server in self.servers if server.kind == kind), None)


def read_service_status(home: Path) -> ServiceStatus | None:
    """What stands in the state folder `home`; None where no supervisor lives, whatever one that was killed has left."""
    try:
        standing = ServiceStatus.model_validate_json((home / STATUS_FOLDER / STATUS_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return standing if is_running(standing.pid, standing.started) else None


def find_processes(home: Path) -> list[psutil.Process]:
    """Every living process that was started for what stands in `home`, the supervisor too."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(HOME_MARKER) == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def terminate_processes(processes: list[psutil.Process], grace_s: float = 10.0) -> None:
    """Afterwards none of them lives."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, living = psutil.wait_procs(processes, timeout=grace_s)
    for process in living:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(living, timeout=grace_s)
