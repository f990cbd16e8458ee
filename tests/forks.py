"""Runs of `bloomery`, forked from a process that has imported the engines because the imports take long.

Tests use `Forks`. The module run as a program is the parent process. It reads lines of JSON: for an object it starts a
run and prints the process id; for a number it waits for the process of that id and prints the exit code.
A run that starts its own Prefect server cannot be forked, since it sets the server's address before it imports prefect.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

# Modules that a run imports.
_ENGINES = (
    *("great_expectations", "duckdb", "pyarrow.dataset", "git", "pandas", "sklearn.datasets", "matplotlib.pyplot"),
    *("mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_store", "alembic.command"),
    *("torch", "captum.attr", "torch._dynamo", "torch.onnx._internal.exporter._core"),
    *("torch.export._trace", "onnxscript.function_libs.torch_lib.ops"),
    *("torch_pruning", "onnx", "onnxruntime", "onnxscript", "onnxscript.optimizer", "onnxscript.rewriter"),
    *("safetensors.torch", "ml_dtypes"),
)
ROOT = Path(__file__).resolve().parent.parent


class Forks:
    """Starts each run in its own process, with its own environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "tests.forks"]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._parent = subprocess.Popen(command, env=environment, cwd=ROOT, **streams)

    def start(self, *arguments: str, environment: dict[str, str], out: Path, err: Path) -> int:
        """Starts a run and returns its process id. Its output is appended to the two files.

        `environment` must contain the address of a Prefect server.
        """
        assert "PREFECT_API_URL" in environment
        return self._request(
            {"arguments": arguments, "environment": environment, "out": str(out.absolute()), "err": str(err.absolute())}
        )

    def wait(self, pid: int, timeout_s: float = 300) -> int:
        """Returns the exit code of the run's process, or the negative number of the signal that killed it.

        A process that runs longer than `timeout_s` is killed.
        """
        killer = threading.Timer(timeout_s, os.kill, (pid, signal.SIGKILL))
        killer.start()
        try:
            return self._request(pid)
        finally:
            killer.cancel()

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(timeout=30)

    def _request(self, message: object) -> int:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(message) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())


def _run(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, mode, 0o644), number)
    from prefect.context import refresh_global_settings_context

    from bloomery.flows.cli.main import main
    from bloomery.tasks.infrastructure import settings
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment

    settings.settings.cache_clear()
    apply_engine_environment()
    settings.require_state_folder(with_room=False)  # sets variables, before prefect reads them
    refresh_global_settings_context()
    sys.argv = ["bloomery", *request["arguments"]]
    main()


def _fill_caches() -> None:
    """Fills caches that every run would otherwise fill again: parsed source files, fonts, installed packages."""
    from matplotlib import pyplot as plt
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    from bloomery.tasks.bentos.environment import code_versions
    from bloomery.tasks.orchestration.code_version import reach
    from bloomery.tasks.package.bento_builder import SERVICE

    code_versions()
    reach(SERVICE)
    plt.figure().savefig(io.BytesIO())
    plt.close()
    warn_dependency_requirement_mismatches(["numpy"])


def _serve() -> None:
    for name in _ENGINES:
        importlib.import_module(name)
    import bloomery.flows.cli.main
    import bloomery.flows.pipeline  # noqa: F401

    _fill_caches()
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            print(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            _run(request)
        print(child, flush=True)


if __name__ == "__main__":
    _serve()
