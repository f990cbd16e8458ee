"""Records the process of each flow run, and ends flow runs whose process is gone.

Prefect's server does not notice that a process was killed: its run stays `Running`. Each run writes a file with its
process into the state folder, and the supervisor tells the server which runs have lost their process.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil

from bloomery.data_contracts.documents.documents import Document
from bloomery.tasks.infrastructure.tethered_process import is_running

_PENDING_LIMIT = timedelta(minutes=3)  # a worker starts the process of a run within this time
_MAX_STARTS = 3  # limits the restarts of a run whose process is killed each time


class RunProcess(Document):
    """The process of a flow run."""

    host: str
    pid: int
    started: float


@contextlib.contextmanager
def recording_process(run_id: str | None, home: Path) -> Iterator[None]:
    """Inside the `with` block the state folder records this process as that of the flow run."""
    if not run_id:
        yield
        return
    path = _folder(home) / f"{run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    process = RunProcess(host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time())
    path.write_text(process.model_dump_json(), encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def live_run_pids(home: Path) -> list[int]:
    """Returns the processes that run a flow run: the live ones of this machine, and all recorded of other machines."""
    pids = []
    for path in _folder(home).glob("*.json"):
        process = _read(path)
        if process is not None and (process.host != socket.gethostname() or is_running(process.pid, process.started)):
            pids.append(process.pid)
    return pids


def reap_dead_runs(api: httpx.Client, home: Path, *, none_is_pending: bool = False) -> list[str]:
    """Ends every flow run of this machine whose process is gone. Afterwards none of them is `Running`.

    The run of a deployment is scheduled again and continues after its last complete stage; any other run is marked as
    crashed.

    Args:
        api: a client of Prefect's API.
        home: the state folder.
        none_is_pending: no worker is starting runs at the moment.

    Returns:
        One sentence for each run.
    """
    messages = []
    states = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    for run in _json(api.post("/flow_runs/filter", json=states)):
        path = _folder(home) / f"{run['id']}.json"
        process = _read(path)
        is_dead = (
            process is not None
            and process.host == socket.gethostname()
            and not is_running(process.pid, process.started)
        )
        is_lost = process is None and run["state_type"] == "PENDING" and (none_is_pending or _is_overdue(run))
        if is_dead or is_lost:
            messages.append(_end_or_reschedule(api, run))
            path.unlink(missing_ok=True)
    return messages


def _end_or_reschedule(api: httpx.Client, run: dict[str, Any]) -> str:
    name, is_cancelled = run["name"], run["state_type"] == "CANCELLING"
    kind = "CANCELLED" if is_cancelled else "CRASHED"
    _set_state(api, run["id"], {"type": kind, "message": "The process of the run is gone."})
    if is_cancelled or run["deployment_id"] is None or run["run_count"] >= _MAX_STARTS:
        return f"{name} is {kind.lower()}: its process is gone"
    message = (
        f"The process of the run is gone; start {run['run_count'] + 1} of {_MAX_STARTS} continues after the last "
        "complete stage."
    )
    retry = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message}
    _set_state(api, run["id"], retry, scheduled_time=datetime.now(UTC).isoformat())
    return f"{name} is scheduled again: its process was gone"


def _set_state(api: httpx.Client, run_id: str, state: dict[str, Any], **details: Any) -> None:
    _json(api.post(f"/flow_runs/{run_id}/set_state", json={"state": {**state, "state_details": details}}))


def _json(response: httpx.Response) -> Any:
    response.raise_for_status()
    return response.json()


def _folder(home: Path) -> Path:
    return home / "runs"


def _read(path: Path) -> RunProcess | None:
    try:
        return RunProcess.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_overdue(run: dict[str, Any]) -> bool:
    since = datetime.fromisoformat(run["state"]["timestamp"])
    return datetime.now(UTC) - since > _PENDING_LIMIT
