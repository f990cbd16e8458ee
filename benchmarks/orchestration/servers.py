"""Permanent Prefect and MLflow servers for a benchmark, on SQLite files or on PostgreSQL.

They run the commands of `deployments/compose.yaml`, and end with the `with` block.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from resource_usage import ROOT

from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server

DATABASES = ROOT / "deployments" / "kubernetes" / "databases.sql"
_TIMEOUT_S = 180


class Servers(NamedTuple):
    """The servers' addresses as environment variables, and their process ids."""

    variables: dict[str, str]
    pids: tuple[int, ...]

    def processor_s(self) -> float:
        """Returns the processor seconds of the servers and all their processes so far."""
        total = 0.0
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                for process in [root, *root.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        times = process.cpu_times()
                        total += times.user + times.system + times.children_user + times.children_system
        return total


def postgres_program(name: str) -> str | None:
    """Finds one of PostgreSQL's programs, which Debian does not put on the path; None if it is not installed."""
    paths = [*map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), shutil.which(name)]
    return next(filter(None, paths), None)


@contextlib.contextmanager
def permanent_servers(folder: Path, *, on_postgres: bool) -> Iterator[Servers]:
    """Starts both servers with their files in `folder`, and yields them once they respond."""
    with contextlib.ExitStack() as stack:
        prefect_store, mlflow_store = {}, f"sqlite:///{folder}/mlflow.db"
        database = None
        if on_postgres:
            database, port = stack.enter_context(_running_postgres())
            address = f"bloomery@127.0.0.1:{port}"
            prefect_store = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{address}/prefect"}
            mlflow_store = f"postgresql://{address}/mlflow"
        prefect, mlflow = find_free_port(), find_free_port()
        bin_folder = Path(sys.executable).parent
        common = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(folder)}
        ready_waits, earlier_pids = [], {child.pid for child in psutil.Process().children()}
        for name, port, path, command, variables in (
            (
                "prefect",
                prefect,
                "/api/ready",
                ["prefect", "server", "start", "--host=127.0.0.1", f"--port={prefect}"],
                {"PREFECT_HOME": f"{folder}/prefect", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", **prefect_store},
            ),
            (
                "mlflow",
                mlflow,
                "/health",
                [
                    *("mlflow", "server", "--host=127.0.0.1", f"--port={mlflow}", "--workers=1"),
                    *(f"--backend-store-uri={mlflow_store}", f"--artifacts-destination={folder}/artifacts"),
                ],
                {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            ),
        ):
            is_ready = _ready_check(f"http://127.0.0.1:{port}{path}")
            log = folder / f"{name}.log"
            clean_command = ["env", "-i", *(f"{key}={value}" for key, value in (common | variables).items()), *command]
            server = tethered_server(clean_command, is_ready=is_ready, log=log, timeout_s=_TIMEOUT_S)
            ready_waits.append(stack.enter_context(server))
        pids = {child.pid for child in psutil.Process().children()} - earlier_pids
        for wait_until_ready in ready_waits:
            wait_until_ready()
        yield Servers(
            {"PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api", "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}"},
            (*pids, *([database] if database else [])),
        )


@contextlib.contextmanager
def _running_postgres() -> Iterator[tuple[int, int]]:
    """Yields process id and port of a PostgreSQL with both databases and default durability."""
    initdb, server, psql = (postgres_program(name) for name in ("initdb", "postgres", "psql"))
    if initdb is None or server is None or psql is None:
        raise SystemExit("PostgreSQL is not installed: initdb, postgres and psql are required")
    # PostgreSQL does not run as root, and the user postgres cannot read root's folders.
    user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}
    folder = subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True, **user).stdout.strip()
    port = find_free_port()
    try:
        create_cluster = [initdb, "-D", f"{folder}/data", "--username=bloomery", "--auth=trust"]
        subprocess.run(create_cluster, check=True, capture_output=True, cwd=folder, **user)
        command = [server, "-D", f"{folder}/data", "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", folder]
        with open(os.devnull, "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **user)
        try:
            client = [psql, "-h", "127.0.0.1", "-p", str(port), "-U", "bloomery", "-d", "postgres"]
            deadline = time.monotonic() + _TIMEOUT_S
            while subprocess.run([*client, "-c", "select 1"], capture_output=True).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"PostgreSQL did not respond within {_TIMEOUT_S} s")
                time.sleep(0.1)
            subprocess.run([*client, "-f", str(DATABASES)], check=True, capture_output=True)
            yield process.pid, port
        finally:
            process.terminate()
            process.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ready_check(url: str) -> Callable[[], bool]:
    """Returns a function that tells whether the address responds with status 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_ready() -> bool:
        try:
            with opener.open(url, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    return is_ready
