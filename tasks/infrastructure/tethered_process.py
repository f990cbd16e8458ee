"""Servers that end with the process that started them, also when it is killed.

A small process of this module, the tether, starts the server and holds the reading end of a pipe. When the starter
exits or is killed, the pipe closes, and the tether ends the server's whole process group. Tether and server have
sessions of their own, so that a signal to the starter's process group does not end the tether before the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from bloomery.data_contracts.errors import EngineMissing, PortInUse
from bloomery.tasks.infrastructure.python_processes import module_command

_GRACE_S = 10
_STARTER_CHECK_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36  # an option of Linux's prctl


@contextlib.contextmanager
def tethered_server(
    command: Sequence[str],
    *,
    is_ready: Callable[[], bool],
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = 120,
) -> Iterator[Callable[[], None]]:
    """Runs a server during the `with` block, in `folder` or the current one.

    Yields a function that waits until `is_ready` returns true.

    That function raises EngineMissing if the server ends or is not ready in time; the message shows the end of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        tether = start_tethered(command, stream, environment, folder)
        try:
            yield lambda: wait_until_ready(tether, is_ready, command, log, timeout_s)
        finally:
            stop_tethered(tether)


def start_tethered(
    command: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Starts `command` tethered to this process, in `folder` or the current one. Its output goes to `log`.

    It inherits the file descriptors `pass_fds`, with these numbers.
    """
    descriptors = ",".join(map(str, pass_fds))
    return subprocess.Popen(
        module_command("bloomery.tasks.infrastructure.tethered_process", descriptors, *command),
        pass_fds=pass_fds,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env={**os.environ, **(environment or {})},
        cwd=folder,
        start_new_session=True,
    )


def stop_tethered(*tethers: subprocess.Popen[bytes]) -> None:
    """Ends tethered servers, all at the same time, and waits until their processes are gone."""
    for tether in tethers:
        if tether.stdin is not None:
            tether.stdin.close()
    deadline = time.monotonic() + _GRACE_S + 5
    for tether in tethers:
        try:
            tether.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _kill_tree(tether)
            tether.wait()


def _kill_tree(tether: subprocess.Popen[bytes]) -> None:
    """Kills a tether that does not respond, for instance because it was stopped, and its server."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(tether.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
    tether.kill()


def slowdown() -> float:
    """Returns how many times longer work may take at the moment, since other processes use the processors: 1 to 10."""
    return min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), 10.0)


def wait_until_ready(
    tether: subprocess.Popen[bytes], is_ready: Callable[[], bool], command: Sequence[str], log: Path, timeout_s: float
) -> None:
    """Waits until `is_ready` returns true, on a busy machine for longer than `timeout_s`.

    Raises:
        EngineMissing: the server has ended or is not ready in time; the message shows the end of its log.
    """
    start_time = time.monotonic()
    while not is_ready():
        has_ended, waited_s = tether.poll() is not None, time.monotonic() - start_time
        if has_ended or waited_s > timeout_s * slowdown():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise EngineMissing(
                f"{Path(command[0]).name} {' '.join(command[1:4])} "
                + (f"ended with {tether.returncode}" if has_ended else f"was not ready after {waited_s:.0f} s")
                + "".join(f"\n  | {line[:300]}" for line in lines),
                required="a server that answers",
                where=str(log),
                remedy="read the log above, and run `bloomery doctor`; on a busy machine, run the command again later",
            )
        time.sleep(0.05)


def find_free_port() -> int:
    """Returns a port on the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free_port(host: str, port: int) -> None:
    """Raises PortInUse, with the owner where the system shows it, unless a server could listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as failure:
            raise PortInUse(
                f"port {port} cannot be listened on: {failure.strerror}",
                required="a free port",
                where=f"{host}:{port}, held by {find_port_owner(port) or 'a process of another user'}",
                remedy="end that process, or choose another port with --port",
            ) from failure


def is_running(pid: int, started: float) -> bool:
    """Whether the process with this id and start time still runs. A later process may have the same id."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    return False


def find_port_owner(port: int) -> str | None:
    """Returns the process that listens on `port`; None if there is none or another user owns it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (pid {connection.pid})"
    return None


def _tether(command: Sequence[str], pass_fds: Sequence[int]) -> int:
    _adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=pass_fds)
    for descriptor in pass_fds:
        os.close(descriptor)  # otherwise a socket would still listen after the server and its starter have ended

    starter = os.getppid()

    def end() -> None:
        _end_group(child)
        _end_orphans()

    def watch() -> None:
        # Not through `sys.stdin`: this thread would hold its lock when the interpreter ends first. The pipe stays open
        # while a child process of a killed starter runs on, hence the second condition.
        while os.getppid() == starter:
            is_readable = bool(select.select([0], [], [], _STARTER_CHECK_S)[0])
            if is_readable and not os.read(0, 4096):
                break
        end()

    # In a thread, since this one waits for the child and would not notice its end inside the handler.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, daemon=True).start())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter handles it, and closes the pipe
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    end()  # child processes of a killed server, which would hold its port
    return code


def _adopt_orphans() -> None:
    """Makes this process the parent of its descendants' orphans, which Linux allows."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_orphans() -> None:
    """Ends workers with their own session, which remain if their server is killed."""
    orphans = psutil.Process().children(recursive=True)
    for orphan in orphans:
        with contextlib.suppress(psutil.Error):
            orphan.terminate()
    _, survivors = psutil.wait_procs(orphans, timeout=_GRACE_S)
    for orphan in survivors:
        with contextlib.suppress(psutil.Error):
            orphan.kill()


def _end_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            os.killpg(child.pid, 0)  # raises once the whole group is gone
            if child.poll() is not None:
                _reap()
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGKILL)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    raise SystemExit(_tether(sys.argv[2:], [int(descriptor) for descriptor in sys.argv[1].split(",") if descriptor]))
