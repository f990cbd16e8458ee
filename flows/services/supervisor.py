"""The process behind `bloomery up`: it starts servers, worker and endpoints, and starts again what ends.

`python -m bloomery.flows.services.supervisor PLAN`, where PLAN is a JSON document, runs until SIGTERM. All that it has
started is tethered to it, so that nothing stays when it is killed. It imports no engine itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.serving.champion_pointer import POINTER, replace_text
from bloomery.flows.run_control.run_liveness import reap
from bloomery.flows.services.prefect_automations import HEARTBEAT_S
from bloomery.flows.services.prefect_deployments import POOL, ROOT, why_ended
from bloomery.tasks.infrastructure.service_status import FOLDER, STATUS, Kind, Server, Standing, State
from bloomery.tasks.infrastructure.settings import Settings, require_state_folder
from bloomery.tasks.infrastructure.tethered_process import start, stop

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_REAPS = 10.0
_LONGEST_PAUSE_S = 60.0
_PATIENCE_S = 180.0  # for a server that does not answer yet
_HTTP = httpx.Client(trust_env=False, timeout=5)  # a proxy of the environment has no business on the loopback interface


class Plan(Document):
    """What shall stand. A port of None means that the server is somebody else's, at the address of the settings."""

    prefect_port: int | None
    mlflow_port: int | None
    first_endpoint_port: int
    recipes: tuple[str, ...]


@dataclass
class Kept:
    """A server that is kept up."""

    name: str
    kind: Kind
    command: list[str]
    is_ready: Callable[[], bool]
    log: Path
    url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    state: State = "starting"
    restarts: int = 0
    why: str = ""
    tether: subprocess.Popen[bytes] | None = None
    pid: int | None = None  # of the tether's server; to look for it asks every process of the machine
    began: float = 0.0
    pause_s: float = 1.0

    def look(self) -> None:
        """Start it, find that it answers, or that it has ended; one that has ended waits longer each time."""
        now = time.monotonic()
        if self.tether is None:
            if now >= self.began:
                with self.log.open("ab") as stream:
                    self.tether = start(self.command, stream, self.environment)
                self.began, self.state = now, "starting"
            return
        if self.pid is None:
            with contextlib.suppress(psutil.Error):
                self.pid = next((child.pid for child in psutil.Process(self.tether.pid).children()), None)
        code = self.tether.poll()
        if code is not None:
            self._ended(f"it ended with {code}: {_end_of(self.log)}", now)
        elif self.state != "up" and self.is_ready():
            self.state, self.pause_s = "up", 1.0
        elif self.state == "starting" and now - self.began > _PATIENCE_S:
            stop(self.tether)
            self._ended(f"it did not answer within {_PATIENCE_S:.0f} s: {_end_of(self.log)}", now)

    def _ended(self, why: str, now: float) -> None:
        self.tether, self.pid, self.state, self.why = None, None, "failed", why
        self.restarts += 1
        self.began, self.pause_s = now + self.pause_s, min(2 * self.pause_s, _LONGEST_PAUSE_S)

    def as_document(self) -> Server:
        return Server(
            name=self.name,
            kind=self.kind,
            url=self.url,
            pid=self.pid,
            state=self.state,
            restarts=self.restarts,
            why=self.why,
            log=str(self.log),
        )


@dataclass
class Registration:
    """Recipes that are told to Prefect by a process that ends, and again, after longer pauses, until it ends well."""

    recipes: tuple[str, ...]
    log: Path
    has_ended: bool = False  # at least once, well or not
    failures: int = 0
    why: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _next: float = 0.0  # monotonic; never again once it has ended well

    def look(self, api: str) -> None:
        now = time.monotonic()
        if self._process is None:
            if now >= self._next:
                self._begin(api)
        elif (code := self._process.poll()) is not None:
            self.has_ended, self._process = True, None
            if code == 0:
                self._next, self.failures = float("inf"), 0
                return
            said = self.log.read_text(encoding="utf-8", errors="replace")
            self.why = f"the deployments could not be registered: {why_ended(said)}"
            self._next = now + min(2.0**self.failures, _LONGEST_PAUSE_S)
            self.failures += 1

    def _begin(self, api: str) -> None:
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bloomery.flows.services.prefect_deployments", *self.recipes],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PREFECT_API_URL": api},
                cwd=ROOT,
            )

    def as_documents(self) -> tuple[Server, ...]:
        """What `status` shows of it: nothing, unless it failed and has not ended well since."""
        if not self.failures:
            return ()
        told = Server(
            name="registration",
            kind="registration",
            state="failed",
            restarts=self.failures,
            why=self.why,
            log=str(self.log),
        )
        return (told,)


class Supervisor:
    """What stands, in the order in which it was started."""

    def __init__(self, plan: Plan, chosen: Settings) -> None:
        self._plan, self._settings = plan, chosen
        self._kept: list[Kept] = []
        self._foreign: list[Server] = []
        self._ended = threading.Event()
        self._reaped = 0.0
        self._written = ""
        self._started = psutil.Process().create_time()
        self._is_settled = False
        self._registration = Registration(plan.recipes, chosen.logs / "up-registration.log")
        self._ports = chosen.home / FOLDER / "ports.json"
        port = plan.prefect_port
        self._api = chosen.prefect_api_url or "" if port is None else f"http://127.0.0.1:{port}/api"

    def run(self) -> None:
        """Until `end` is called. Afterwards nothing stands any more."""
        try:
            self._begin_servers()
            while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
                self.look()
        finally:
            # Prefect's server last: a worker that is told to end tells it of its runs, and waits in vain for one gone.
            for is_prefect in (False, True):
                stop(*(one.tether for one in self._kept if one.tether and (one.kind == "prefect") == is_prefect))
            (self._settings.home / FOLDER / STATUS).unlink(missing_ok=True)

    def end(self, *_: object) -> None:
        self._ended.set()

    def look(self) -> None:
        for kept in self._kept:
            kept.look()
        if self._prefect_answers():
            self._register()
        self._begin_endpoints()
        settled = all(kept.state != "starting" for kept in self._kept)
        self._is_settled |= settled and self._registration.has_ended
        self._reap()
        self._tell()

    def _begin_servers(self) -> None:
        if self._plan.prefect_port is None:
            self._foreign.append(Server(name="prefect", kind="prefect", url=self._api.removesuffix("/api"), state="up"))
        else:
            self._kept.append(_prefect(self._plan.prefect_port, self._settings))
        if self._plan.mlflow_port is None:
            url = self._settings.tracking_uri
            self._foreign.append(Server(name="mlflow", kind="mlflow", url=url, state="up"))
        else:
            self._kept.append(_mlflow(self._plan.mlflow_port, self._settings))

    def _prefect_answers(self) -> bool:
        return self._plan.prefect_port is None or any(one.kind == "prefect" and one.state == "up" for one in self._kept)

    def _register(self) -> None:
        """Pool and deployments, then the worker that takes runs from them, after the dead are told of.

        What an earlier registration has made counts though this one failed: the worker does not wait for a mended file.
        """
        self._registration.look(self._api)
        if self._registration.has_ended and not any(one.kind == "worker" for one in self._kept):
            self._reap(none_is_pending=True)
            self._kept.append(_worker(self._api, self._settings))

    def _begin_endpoints(self) -> None:
        """A name that has got its first champion gets an endpoint; its port stays its own."""
        named = sorted(path.parent.name for path in (self._settings.home / "served").glob(f"*/{POINTER}"))
        standing = {kept.name for kept in self._kept if kept.kind == "endpoint"}
        for name in named:
            if name not in standing:
                self._kept.append(_endpoint(name, self._port_of(name), self._settings))

    def _port_of(self, name: str) -> int:
        known: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self._ports.read_text(encoding="utf-8"))
        if name not in known:
            taken = {*known.values(), self._plan.prefect_port, self._plan.mlflow_port}
            known[name] = next(
                port for port in range(self._plan.first_endpoint_port, 65_536) if port not in taken and _is_free(port)
            )
            replace_text(self._ports, json.dumps(known))
        return known[name]

    def _reap(self, *, none_is_pending: bool = False) -> None:
        now = time.monotonic()
        if not none_is_pending and (now - self._reaped < _SECONDS_BETWEEN_REAPS or not self._prefect_answers()):
            return
        self._reaped = now
        with contextlib.suppress(httpx.HTTPError), httpx.Client(base_url=self._api, trust_env=False) as api:
            for line in reap(api, self._settings.home, none_is_pending=none_is_pending):
                print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)

    def _tell(self) -> None:
        standing = Standing(
            pid=os.getpid(),
            started=self._started,
            is_settled=self._is_settled,
            servers=(
                *self._foreign,
                *(kept.as_document() for kept in self._kept),
                *self._registration.as_documents(),
            ),
        )
        text = standing.model_dump_json(indent=1)
        if text != self._written:
            with contextlib.suppress(OSError):  # a full disk: what stands goes on
                replace_text(self._settings.home / FOLDER / STATUS, text)
                self._written = text


def _prefect(port: int, chosen: Settings) -> Kept:
    url = f"http://127.0.0.1:{port}"
    environment = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",  # else the page looks for it on port 4200
        # Slots of a dead training are given back, also when the server was started anew in the meantime.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    log = chosen.logs / "up-prefect.log"
    return Kept("prefect", "prefect", command, _answering(f"{url}/api/health"), log, url, environment)


def _mlflow(port: int, chosen: Settings) -> Kept:
    url = f"http://127.0.0.1:{port}"
    artifacts = (chosen.home / "mlflow" / "artifacts").as_uri()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", chosen.tracking_uri, "--default-artifact-root", artifacts),
    ]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else it is a dozen processes
    log = chosen.logs / "up-mlflow.log"
    return Kept("mlflow", "mlflow", command, _answering(f"{url}/health"), log, url, environment)


def _worker(api: str, chosen: Settings) -> Kept:
    name = f"bloomery-{os.uname().nodename}"
    command = [
        *(sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name),
    ]
    environment = {"PREFECT_API_URL": api, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}

    def is_online() -> bool:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            workers = _HTTP.post(f"{api}/work_pools/{POOL}/workers/filter", json={}).json()
            return any(one["name"] == name and one["status"] == "ONLINE" for one in workers)
        return False

    return Kept("worker", "worker", command, is_online, chosen.logs / "up-worker.log", "", environment)


def _endpoint(name: str, port: int, chosen: Settings) -> Kept:
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "bloomery.flows.cli", "serve", name, "--port", str(port)]
    return Kept(name, "endpoint", command, _answering(f"{url}/readyz"), chosen.logs / f"up-endpoint-{name}.log", url)


def _answering(url: str) -> Callable[[], bool]:
    def is_ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return _HTTP.get(url).is_success
        return False

    return is_ready


def _is_free(port: int) -> bool:
    from bloomery.data_contracts.errors import PortInUse
    from bloomery.tasks.infrastructure.tethered_process import require_free

    try:
        require_free("127.0.0.1", port)
    except PortInUse:
        return False
    return True


def _end_of(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "its log is empty"
    return "there is no log"


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Nobody else supervises this state folder. Raises Timeout where somebody does."""
    with FileLock(home / FOLDER / "supervisor.lock", timeout=10):
        yield


def main() -> None:
    chosen = require_state_folder()
    plan = Plan.model_validate_json(sys.argv[1])
    supervisor = Supervisor(plan, chosen)
    signal.signal(signal.SIGTERM, supervisor.end)
    signal.signal(signal.SIGINT, supervisor.end)
    try:
        with _alone(chosen.home):
            supervisor.run()
    except Timeout:
        raise SystemExit("another supervisor is at work in this state folder") from None


if __name__ == "__main__":
    main()
