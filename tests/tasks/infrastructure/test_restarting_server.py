"""A server that ends or hangs is started again, and its clients are not refused meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bloomery.data_contracts.errors import EngineMissing
from bloomery.tasks.infrastructure import restarting_server
from bloomery.tasks.infrastructure.python_processes import code_command
from bloomery.tasks.infrastructure.restarting_server import RestartingServer, listen_on_loopback
from tests.processes import wait_for

# Responds with its process id.
SERVER = (
    "import os, socket, sys\n"
    "listener = socket.socket(fileno=int(sys.argv[1]))\n"
    "while True:\n"
    "    connection, _ = listener.accept()\n"
    "    connection.recv(4096)\n"
    "    body = str(os.getpid()).encode()\n"
    "    connection.sendall(b'HTTP/1.0 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%b' % (len(body), body))\n"
    "    connection.close()\n"
)


def ask(url: str, timeout_s: float = 30) -> int:
    """Returns the process id of the server that responds. A request that its predecessor has accepted is repeated."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with opener.open(url, timeout=timeout_s) as response:
                return int(response.read())
        except (urllib.error.URLError, ConnectionError, ValueError) as failure:
            if "refused" in str(failure) or time.monotonic() > deadline:
                raise


StartServer = Callable[..., tuple[RestartingServer, str, list[str]]]


@pytest.fixture
def start_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartServer]:
    monkeypatch.setattr(restarting_server, "_CHECK_INTERVAL_S", 0.05)
    monkeypatch.setattr(restarting_server, "_PROBE_INTERVAL_S", 0.2)
    monkeypatch.setattr(restarting_server, "_UNRESPONSIVE_S", 0.5)
    servers: list[RestartingServer] = []

    def start(code: str = SERVER) -> tuple[RestartingServer, str, list[str]]:
        listener = listen_on_loopback()
        url, reasons = f"http://127.0.0.1:{listener.getsockname()[1]}", list[str]()

        def is_responsive(timeout_s: float) -> bool:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            try:
                return bool(opener.open(url, timeout=timeout_s).status == 200)
            except OSError:
                return False

        command = code_command(code, str(listener.fileno()))
        server = RestartingServer(command, listener, is_responsive, tmp_path / "log", {}, reasons.append)
        servers.append(server)
        server.start()
        return server, url, reasons

    yield start
    for server in servers:
        server.stop()


def test_a_killed_server_is_started_again_and_no_client_is_refused(start_server: StartServer) -> None:
    server, url, reasons = start_server()
    server.wait()
    pids = [ask(url)]
    for _ in range(2):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(ask(url))  # sent while no server runs
    assert len(set(pids)) == 3
    assert len(reasons) == 2
    assert "ended with exit code" in reasons[0]
    server.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_a_server_that_is_killed_while_a_probe_waits_is_started_again(
    start_server: StartServer, tmp_path: Path
) -> None:
    # The second server accepts no connection, so the probe that waits for it has up to 180 s.
    marker = tmp_path / "started"
    deaf = (
        f"import os, pathlib, time\nmarker = pathlib.Path({str(marker)!r})\n"
        "if marker.exists() and not marker.read_text():\n"
        "    marker.write_text(str(os.getpid()))\n    time.sleep(600)\n"
        "marker.touch()\n"
    )
    server, url, reasons = start_server(deaf + SERVER)
    server.wait()
    os.kill(ask(url), signal.SIGKILL)
    wait_for(lambda: marker.read_text())
    wait_for(lambda: any(thread.name == "server-probe" for thread in threading.enumerate()))
    os.kill(int(marker.read_text()), signal.SIGKILL)
    assert ask(url) > 0
    assert len(reasons) == 2


def test_a_stopped_server_is_replaced(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloomery.tasks.infrastructure.tethered_process._GRACE_S", -4.5)
    server, url, reasons = start_server()
    server.wait()
    pid = ask(url)
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: reasons)
    assert "did not respond" in reasons[0]
    assert ask(url) != pid


def test_a_server_that_always_ends_is_given_up_and_then_refuses_clients(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarting_server, "_MAX_RESTARTS", 1)
    server, url, _ = start_server()
    server.wait()
    for _ in range(2):
        os.kill(ask(url), signal.SIGKILL)
    wait_for(lambda: server.num_restarts == 2)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_a_server_that_is_killed_while_it_starts_is_started_again(start_server: StartServer, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    kill = f"import os, pathlib\nmarker = pathlib.Path({str(marker)!r})\nif not marker.exists():\n"
    server, url, reasons = start_server(f"{kill}    marker.touch()\n    os.kill(os.getpid(), 9)\n{SERVER}")
    server.wait()
    assert ask(url) > 0
    assert len(reasons) == 1


def test_a_server_that_does_not_start_is_reported(start_server: StartServer) -> None:
    server, _, _ = start_server("raise SystemExit('the reason')")
    with pytest.raises(EngineMissing, match="the reason"):
        server.wait()
