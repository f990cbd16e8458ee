"""The process behind `bloomery up`: starts servers, worker and endpoints, and restarts those that end.

`python -m bloomery.flows.services.supervisor PLAN`, where PLAN is a JSON document, runs until SIGTERM. Everything it
starts is tethered to it, so that no process is left when it is killed. It imports no engine itself.
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
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.serving.champion_pointer import POINTER_FILE
from bloomery.flows.run_control.run_liveness import reap_dead_runs
from bloomery.flows.services.prefect_automations import HEARTBEAT_S
from bloomery.flows.services.prefect_deployments import ROOT, WORK_POOL, failure_reason
from bloomery.flows.services.supervised_process import MAX_PAUSE_S, SupervisedProcess
from bloomery.tasks.infrastructure.python_processes import NEUTRAL_FOLDER, module_command
from bloomery.tasks.infrastructure.service_status import STATUS_FILE, STATUS_FOLDER, Service, ServiceStatus
from bloomery.tasks.infrastructure.settings import Settings, require_state_folder
from bloomery.tasks.infrastructure.tethered_process import stop_tethered

_CHECK_INTERVAL_S = 0.5
_REAP_INTERVAL_S = 2.0
_WORKER_QUERY_S = 2.0  # between two queries of the worker for runs to start; Prefect's default is 10 s
_HTTP = httpx.Client(trust_env=False, timeout=5)  # the environment's proxy does not apply to the loopback interface


class ServicePlan(Document):
    """The services to run. A port of None stands for an external server, whose address is in the settings."""

    prefect_port: int | None
    mlflow_port: int | None
    first_endpoint_port: int
    recipes: tuple[str, ...]


@dataclass
class RecipeRegistration:
    """Registers recipes with Prefect in a child process, again after growing pauses until it succeeds."""

    recipes: tuple[str, ...]
    log: Path
    has_ended: bool = False  # whether it has ended at least once, successfully or not
    failures: int = 0
    reason: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _next: float = 0.0  # monotonic; infinite after a success

    def check(self, api: str) -> None:
        """Starts the process, or records how it ended."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._next:
                self._start(api)
        elif (code := self._process.poll()) is not None:
            self.has_ended, self._process = True, None
            if code == 0:
                self._next, self.failures = float("inf"), 0
                return
            output = self.log.read_text(encoding="utf-8", errors="replace")
            self.reason = f"the deployments could not be registered: {failure_reason(output)}"
            self._next = now + min(2.0**self.failures, MAX_PAUSE_S)
            self.failures += 1

    def _start(self, api: str) -> None:
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                module_command("bloomery.flows.services.prefect_deployments", "--", *self.recipes),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PREFECT_API_URL": api},
                cwd=ROOT,
            )

    def as_documents(self) -> tuple[Service, ...]:
        """Returns what `status` shows: nothing, unless it failed and has not succeeded since."""
        if not self.failures:
            return ()
        server = Service(
            name="registration",
            kind="registration",
            state="failed",
            restarts=self.failures,
            reason=self.reason,
            log=str(self.log),
        )
        return (server,)


class Supervisor:
    """The supervised processes, in the order in which they were started."""

    def __init__(self, plan: ServicePlan, settings: Settings) -> None:
        self._plan, self._settings = plan, settings
        self._processes: list[SupervisedProcess] = []
        self._external: list[Service] = []
        self._ended = threading.Event()
        self._reaped = 0.0
        self._written = ""
        self._started = psutil.Process().create_time()
        self._is_settled = False
        self._registration = RecipeRegistration(plan.recipes, settings.logs / "up-registration.log")
        self._ports = settings.home / STATUS_FOLDER / "ports.json"
        port = plan.prefect_port
        self._api = settings.prefect_api_url or "" if port is None else f"http://127.0.0.1:{port}/api"
        self._client = httpx.Client(base_url=self._api, trust_env=False)

    def run(self) -> None:
        """Supervises until `end` is called, then stops everything."""
        try:
            self._add_servers()
            while not self._ended.wait(_CHECK_INTERVAL_S):
                self.check()
        finally:
            # Prefect's server last: a worker that ends reports its runs to it, and would wait for a missing one.
            for is_prefect in (False, True):
                processes = (process for process in self._processes if (process.kind == "prefect") == is_prefect)
                stop_tethered(*(process.tether for process in processes if process.tether))
            (self._settings.home / STATUS_FOLDER / STATUS_FILE).unlink(missing_ok=True)

    def end(self, *_: object) -> None:
        self._ended.set()

    def check(self) -> None:
        for process in self._processes:
            process.check()
        if self._prefect_is_up():
            self._register()
        self._add_endpoints()
        has_started = all(process.state != "starting" for process in self._processes)
        self._is_settled |= has_started and self._registration.has_ended
        self._reap()
        self._write_status()

    def _add_servers(self) -> None:
        if self._plan.prefect_port is None:
            url = self._api.removesuffix("/api")
            self._external.append(Service(name="prefect", kind="prefect", url=url, state="up"))
        else:
            self._processes.append(_prefect(self._plan.prefect_port, self._settings))
        if self._plan.mlflow_port is None:
            url = self._settings.tracking_uri
            self._external.append(Service(name="mlflow", kind="mlflow", url=url, state="up"))
        else:
            self._processes.append(_mlflow(self._plan.mlflow_port, self._settings))

    def _prefect_is_up(self) -> bool:
        is_external = self._plan.prefect_port is None
        return is_external or any(process.kind == "prefect" and process.state == "up" for process in self._processes)

    def _register(self) -> None:
        """Registers pool and deployments, reaps dead runs, then starts the worker.

        The worker starts even if this registration failed, since an earlier one may have succeeded.
        """
        self._registration.check(self._api)
        if self._registration.has_ended and not any(process.kind == "worker" for process in self._processes):
            self._reap(none_is_pending=True)
            self._processes.append(_worker(self._api, self._settings))

    def _add_endpoints(self) -> None:
        """Adds an endpoint for each model that has a champion. A model keeps its port."""
        names = sorted(path.parent.name for path in (self._settings.home / "served").glob(f"*/{POINTER_FILE}"))
        served = {process.name for process in self._processes if process.kind == "endpoint"}
        for name in names:
            if name not in served:
                self._processes.append(_endpoint(name, self._port_of(name), self._settings))

    def _port_of(self, name: str) -> int:
        ports: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            ports = json.loads(self._ports.read_text(encoding="utf-8"))
        if name not in ports:
            used_ports = {*ports.values(), self._plan.prefect_port, self._plan.mlflow_port}
            ports[name] = next(
                port
                for port in range(self._plan.first_endpoint_port, 65_536)
                if port not in used_ports and _is_free(port)
            )
            write_text(self._ports, json.dumps(ports), mode=0o600)
        return ports[name]

    def _reap(self, *, none_is_pending: bool = False) -> None:
        now = time.monotonic()
        if not none_is_pending and (now - self._reaped < _REAP_INTERVAL_S or not self._prefect_is_up()):
            return
        self._reaped = now
        with contextlib.suppress(httpx.HTTPError):
            for message in reap_dead_runs(self._client, self._settings.home, none_is_pending=none_is_pending):
                print(time.strftime("%Y-%m-%d %H:%M:%S"), message, flush=True)

    def _write_status(self) -> None:
        status = ServiceStatus(
            pid=os.getpid(),
            started=self._started,
            is_settled=self._is_settled,
            services=(
                *self._external,
                *(process.as_document() for process in self._processes),
                *self._registration.as_documents(),
            ),
        )
        text = status.model_dump_json(indent=1)
        if text != self._written:
            with contextlib.suppress(OSError):  # a full disk must not stop the servers
                write_text(self._settings.home / STATUS_FOLDER / STATUS_FILE, text, mode=0o600)
                self._written = text


def _prefect(port: int, settings: Settings) -> SupervisedProcess:
    url = f"http://127.0.0.1:{port}"
    environment = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",  # otherwise the page expects it on port 4200
        # The slots of a dead training are released even after a restart of the server.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    command = module_command("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    log = settings.logs / "up-prefect.log"
    is_ready = _responds_at(f"{url}/api/health")
    folder = NEUTRAL_FOLDER  # Prefect's migrations import from the current folder, and its settings are read there
    return SupervisedProcess("prefect", "prefect", command, is_ready, log, url, environment, folder)


def _mlflow(port: int, settings: Settings) -> SupervisedProcess:
    url = f"http://127.0.0.1:{port}"
    artifacts = (settings.home / "mlflow" / "artifacts").as_uri()
    command = [
        *module_command("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", settings.tracking_uri, "--default-artifact-root", artifacts),
    ]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # otherwise it starts a dozen processes
    log = settings.logs / "up-mlflow.log"
    return SupervisedProcess("mlflow", "mlflow", command, _responds_at(f"{url}/health"), log, url, environment)


def _worker(api: str, settings: Settings) -> SupervisedProcess:
    name = f"bloomery-{os.uname().nodename}"
    command = module_command(*("prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", name))
    environment = {
        "PREFECT_API_URL": api,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", str(_WORKER_QUERY_S)),
    }

    def is_online() -> bool:
        with contextlib.suppress(httpx.HTTPError, ValueError):
            workers = _HTTP.post(f"{api}/work_pools/{WORK_POOL}/workers/filter", json={}).json()
            return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in workers)
        return False

    log = settings.logs / "up-worker.log"
    folder = NEUTRAL_FOLDER  # Prefect reads settings from files of the current folder
    return SupervisedProcess("worker", "worker", command, is_online, log, "", environment, folder)


def _endpoint(name: str, port: int, settings: Settings) -> SupervisedProcess:
    url = f"http://127.0.0.1:{port}"
    command = module_command("bloomery.flows.cli", "serve", name, "--port", str(port))
    return SupervisedProcess(
        name, "endpoint", command, _responds_at(f"{url}/readyz"), settings.logs / f"up-endpoint-{name}.log", url
    )


def _responds_at(url: str) -> Callable[[], bool]:
    def is_ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return _HTTP.get(url).is_success
        return False

    return is_ready


def _is_free(port: int) -> bool:
    from bloomery.data_contracts.errors import PortInUse
    from bloomery.tasks.infrastructure.tethered_process import require_free_port

    try:
        require_free_port("127.0.0.1", port)
    except PortInUse:
        return False
    return True


@contextlib.contextmanager
def _supervisor_lock(home: Path) -> Iterator[None]:
    """Locks the state folder against other supervisors. Raises Timeout if another one holds the lock."""
    with FileLock(home / STATUS_FOLDER / "supervisor.lock", timeout=10):
        yield


def main() -> None:
    settings = require_state_folder()
    plan = ServicePlan.model_validate_json(sys.argv[1])
    supervisor = Supervisor(plan, settings)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, supervisor.end)
    try:
        with _supervisor_lock(settings.home):
            supervisor.run()
    except Timeout:
        raise SystemExit("another supervisor already uses this state folder") from None


if __name__ == "__main__":
    main()
