"""Runs of `bloomery`, forked from a process that has imported the engines because the imports take long.

Tests use `Forks`. The module run as a program is the parent process. It reads lines of JSON: for an object it starts a
run and prints the process id; for a number it waits for the process of that id and prints the exit code.
It also listens on a socket, through which the stand-in of Python asks for runs that a forked command starts.
A run that starts its own Prefect server cannot be forked, since it sets the server's address before it imports prefect.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import psutil

# Modules that a run imports.
_ENGINES = (
    *("great_expectations", "duckdb", "pyarrow.dataset", "git", "pandas", "sklearn.datasets", "matplotlib.pyplot"),
    *("mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking.sqlalchemy_store", "alembic.command"),
    *("torch", "captum.attr", "torch._dynamo", "torch.onnx._internal.exporter._core"),
    *("torch.export._trace", "onnxscript.function_libs.torch_lib.ops"),
    *("torch_pruning", "onnx", "onnxruntime", "onnxscript", "onnxscript.optimizer", "onnxscript.rewriter"),
    *("safetensors.torch", "ml_dtypes", "mlflow.onnx", "mlflow.pyfunc", "mlflow.pytorch", "prefect.flow_engine"),
    *("torch._inductor.ir", "torch._functorch._aot_autograd.subclass_parametrization", "sympy.tensor.tensor"),
    *("bloomery.models.training.checkpointing", "bloomery.models.training.loop"),
    *("bloomery.models.compression.compressor", "bloomery.tasks.train.distributed.launcher"),
    "onnxscript._framework_apis.torch_2_11",
)
ROOT = Path(__file__).resolve().parent.parent
_FORKED_MODULES = ("bloomery.flows.cli", "bloomery.flows.execution.reproduction")
# Runs Python, except for `python -m MODULE …` with one of these modules: this is forked, with the environment, folder
# and output of the stand-in, which ends with its exit code. If the stand-in is killed, so is the forked process.
_STAND_IN = """#!{python} -IS
import json, os, socket, sys
words = sys.argv[1:]
position = words.index("-m") if "-m" in words[:2] else 0  # other options of Python may precede it
if words[position : position + 1] != ["-m"] or words[position + 1] not in {modules!r}:
    os.execv({python!r}, [{python!r}, *words])
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
socket.send_fds(connection, [b" "], [1, 2])
request = dict(module=words[position + 1], arguments=words[position + 2 :])
request |= dict(environment=dict(os.environ), folder=os.getcwd())
connection.sendall(json.dumps(request).encode() + b"\\n")
code = int(connection.makefile().readline())
sys.exit(code if code >= 0 else 128 - code)
"""


class Forks:
    """Starts each run in its own process, with its own environment."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        # In this folder, since the address of a socket must be short.
        self._address = Path(tempfile.gettempdir()) / f"forks-{os.getpid()}"
        self._stand_in = folder / "python"
        values = {"python": sys.executable, "address": str(self._address), "modules": _FORKED_MODULES}
        self._stand_in.write_text(_STAND_IN.format(**values))
        self._stand_in.chmod(0o755)
        command = [sys.executable, "-m", "tests.forks", str(self._address)]
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._parent = subprocess.Popen(command, env=environment, cwd=ROOT, **streams)

    def start(
        self,
        *arguments: str,
        environment: dict[str, str],
        out: Path,
        err: Path,
        folder: Path = ROOT,
        forks_children: bool = False,
    ) -> int:
        """Starts a run in `folder` and returns its process id. Its output is appended to the two files.

        `environment` must contain the address of a Prefect server. With `forks_children`, the modules of
        `_FORKED_MODULES` that the run starts are forked too.
        """
        assert "PREFECT_API_URL" in environment
        executable = str(self._stand_in) if forks_children else sys.executable
        request = {"module": _FORKED_MODULES[0], "arguments": arguments, "environment": environment}
        files = {"folder": str(folder), "out": str(out.absolute()), "err": str(err.absolute())}
        return self._request({**request, **files, "executable": executable})

    def wait(self, pid: int, timeout_s: float = 300) -> int:
        """Returns the exit code of the run's process, or the negative number of the signal that killed it.

        A process that runs longer than `timeout_s` is killed.
        """
        process, deadline = psutil.Process(pid), time.monotonic() + timeout_s
        # The parent process must not wait meanwhile, since it also starts the children of the run.
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(0.01)
        return self._request(pid)

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(timeout=30)
        self._address.unlink(missing_ok=True)

    def _request(self, message: object) -> int:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(message) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())


def _run(request: dict[str, Any], out: int, err: int) -> None:
    """Runs a module in this process, which has just been forked, and ends it. `out` and `err` are file descriptors."""
    try:
        _run_module(request, out, err)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # Python's own shutdown would wait for threads of ONNX Runtime, which a fork does not have


def _run_module(request: dict[str, Any], out: int, err: int) -> None:
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
        os.dup2(descriptor, number)
    from prefect.context import refresh_global_settings_context

    from bloomery.flows.cli.main import main
    from bloomery.flows.execution import reproduction
    from bloomery.tasks.infrastructure import settings
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.infrastructure.python_processes import NEUTRAL_FOLDER

    settings.settings.cache_clear()
    apply_engine_environment()
    settings.require_state_folder(with_room=False)  # sets variables, before prefect reads them
    with contextlib.chdir(NEUTRAL_FOLDER):  # as when Prefect is imported: no settings of the current folder
        refresh_global_settings_context()
    sys.argv = ["bloomery", *request["arguments"]]
    if request["module"] == reproduction.__name__:
        reproduction.main()
    else:
        main()  # ends the process


def _fill_caches() -> None:
    """Fills caches that every run would otherwise fill again: code versions, ONNX operators, fonts, packages."""
    import torch
    from matplotlib import pyplot as plt
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches
    from torch import nn

    from bloomery.flows.stages import STAGES
    from bloomery.models.export.onnx_exporter import _export_program_to_onnx
    from bloomery.tasks.bentos.environment import code_versions

    code_versions()
    for stage in STAGES:
        stage.key()
    # On so few values PyTorch starts no threads, which a fork would not have.
    _export_program_to_onnx(nn.Linear(1, 1).eval(), (torch.zeros(2, 1),), ["x"], max_length=0)
    plt.figure().savefig(io.BytesIO())
    plt.close()
    warn_dependency_requirement_mismatches(["numpy"])


def _serve() -> None:
    gc.disable()  # until everything is imported, which all stays in use
    for name in _ENGINES:
        importlib.import_module(name)
    import bloomery.flows.cli.main
    import bloomery.flows.pipeline  # noqa: F401

    _fill_caches()
    gc.freeze()  # no forked process examines, and thereby copies, the objects of the imported modules
    gc.enable()
    stand_ins: dict[int, socket.socket] = {}  # the connection for each process id
    with socket.socket(socket.AF_UNIX) as listener:
        Path(sys.argv[1]).unlink(missing_ok=True)
        listener.bind(sys.argv[1])
        listener.listen()
        while True:
            streams = [sys.stdin, listener, *stand_ins.values()]
            ready = select.select(streams, [], [], 0.01 if stand_ins else None)[0]
            if listener in ready:
                connection = listener.accept()[0]
                stand_ins[_fork_for_stand_in(connection)] = connection
            for pid, connection in list(stand_ins.items()):
                if connection in ready:  # closed: the stand-in has been killed
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    stand_ins.pop(pid).close()
                elif os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    with contextlib.suppress(OSError):
                        connection.sendall(f"{_exit_code(pid)}\n".encode())
                    stand_ins.pop(pid).close()
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                request = json.loads(line)
                print(_exit_code(request) if isinstance(request, int) else _fork(request), flush=True)


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fork(request: dict[str, Any]) -> int:
    """Forks a run and returns its process id."""
    child = os.fork()
    if child == 0:
        sys.executable = request["executable"]
        os.chdir(request["folder"])
        out, err = (os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for name in ("out", "err"))
        _run(request, out, err)
    return child


def _fork_for_stand_in(connection: socket.socket) -> int:
    """Forks the run that the stand-in of Python asks for, and returns its process id."""
    _, (out, err), _, _ = socket.recv_fds(connection, 1, 2)
    request = json.loads(connection.makefile().readline())
    child = os.fork()
    if child == 0:
        os.chdir(request["folder"])
        _run(request, out, err)
    os.close(out)
    os.close(err)
    return child


if __name__ == "__main__":
    _serve()
