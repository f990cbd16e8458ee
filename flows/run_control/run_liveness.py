"""Who works on a flow run, and which runs nobody works on any more.

Prefect's server knows of a run only what it was told, so one whose process was killed stays `Running`. Each run leaves
a note of its process in the state folder; whoever finds the process gone says so to the server.
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
from bloomery.tasks.infrastructure.tethered_process import lives

_PENDING = timedelta(minutes=3)  # in which a worker has started a run's process
_MOST_TIMES = 3  # that a run is started; one that kills its process each time must not go on for ever


class Work(Document):
    """The process of a flow run."""

    host: str
    pid: int
    started: float


@contextlib.contextmanager
def at_work_on(run: str | None, home: Path) -> Iterator[None]:
    """Inside the `with` block the state folder says that this process works on the flow run."""
    if not run:
        yield
        return
    note = _folder(home) / f"{run}.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    work = Work(host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time())
    note.write_text(work.model_dump_json(), encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def living(home: Path) -> list[int]:
    """The processes of this machine that work on a flow run; of another machine's, all that left a note."""
    found = []
    for note in _folder(home).glob("*.json"):
        work = _read(note)
        if work is not None and (work.host != socket.gethostname() or lives(work.pid, work.started)):
            found.append(work.pid)
    return found


def reap(api: httpx.Client, home: Path, *, none_is_pending: bool = False) -> list[str]:
    """Afterwards no flow run of this machine is said to run whose process is gone.

    A run of a deployment is scheduled again, and goes on from its last whole stage; any other is marked as crashed.
    `none_is_pending` says that no worker is starting runs just now. `api` is a client of Prefect's API.

    Returns:
        What was done, in words.
    """
    told = []
    wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    for run in _answer(api.post("/flow_runs/filter", json=wanted)):
        note = _folder(home) / f"{run['id']}.json"
        work = _read(note)
        is_gone = work is not None and work.host == socket.gethostname() and not lives(work.pid, work.started)
        is_lost = work is None and run["state_type"] == "PENDING" and (none_is_pending or _is_old(run))
        if is_gone or is_lost:
            told.append(_give_up(api, run))
            note.unlink(missing_ok=True)
    return told


def _give_up(api: httpx.Client, run: dict[str, Any]) -> str:
    name, is_cancelled = run["name"], run["state_type"] == "CANCELLING"
    kind = "CANCELLED" if is_cancelled else "CRASHED"
    _set_state(api, run["id"], {"type": kind, "message": "Its process is gone."})
    if is_cancelled or run["deployment_id"] is None or run["run_count"] >= _MOST_TIMES:
        return f"{name} is {kind.lower()}: its process is gone"
    message = f"Its process is gone; start {run['run_count'] + 1} of {_MOST_TIMES} goes on from the last whole stage."
    again = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message}
    _set_state(api, run["id"], again, scheduled_time=datetime.now(UTC).isoformat())
    return f"{name} goes on: its process was gone"


def _set_state(api: httpx.Client, run: str, state: dict[str, Any], **details: Any) -> None:
    _answer(api.post(f"/flow_runs/{run}/set_state", json={"state": {**state, "state_details": details}}))


def _answer(response: httpx.Response) -> Any:
    response.raise_for_status()
    return response.json()


def _folder(home: Path) -> Path:
    return home / "runs"


def _read(note: Path) -> Work | None:
    try:
        return Work.model_validate_json(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_old(run: dict[str, Any]) -> bool:
    since = datetime.fromisoformat(run["state"]["timestamp"])
    return datetime.now(UTC) - since > _PENDING
