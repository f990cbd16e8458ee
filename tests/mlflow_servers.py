"""MLflow servers that tests start and kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from bloomery.tasks.infrastructure.tethered_process import find_free_port
from tests.processes import responds, wait_for

# The application that `mlflow server` runs. Each line of input starts a server, forked because importing it takes long.
_MLFLOW_SERVERS = """
import os, signal, sys
from mlflow.server import constants
backend, artifacts, port = sys.argv[1:]
os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = backend
os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = artifacts
os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
import uvicorn
from mlflow.server.fastapi_app import app
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # killed servers leave no zombies
for _ in sys.stdin:
    server = os.fork()
    if server == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(2, 1)  # its log
        uvicorn.run(app, host="127.0.0.1", port=int(port))
    print(server, flush=True)
"""


class MlflowServers:
    """Servers of one MLflow database in `folder` and one port, one after the other."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._port = find_free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        arguments = (f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts"), str(self._port))
        with (folder / "log").open("ab") as log:
            self._parent = subprocess.Popen(
                [sys.executable, "-c", _MLFLOW_SERVERS, *arguments],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._server: int | None = None

    def start(self) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write("start\n")
        self._parent.stdin.flush()
        self._server = int(self._parent.stdout.readline())
        wait_for(lambda: responds(f"{self.url}/health"))

    def kill(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            os.kill(server, signal.SIGKILL)
            wait_for(lambda: not psutil.pid_exists(server))

    def await_failed_request(self) -> None:
        """Waits for a request, and closes its connection without a response."""
        with socket.create_server(("127.0.0.1", self._port)) as listener:
            listener.settimeout(120)
            listener.accept()[0].close()

    def close(self) -> None:
        self.kill()
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(timeout=30)
