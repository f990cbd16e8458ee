"""Servers end with the process that started them, and a port in use is reported with its owner."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bloomery.data_contracts.errors import EngineMissing, PortInUse
from bloomery.tasks.infrastructure.tethered_process import (
    find_free_port,
    require_free_port,
    start_tethered,
    stop_tethered,
    tethered_server,
)

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def wait_for(condition: object, timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def list_children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_a_server_and_its_children_end_with_the_block(tmp_path: Path) -> None:
    parent = f"import subprocess, sys, time; subprocess.Popen({SLEEPER!r}); time.sleep(600)"
    before = list_children()  # such as the Java process of other tests
    with tethered_server([sys.executable, "-c", parent], is_ready=lambda: True, log=tmp_path / "log"):
        assert wait_for(lambda: len(list_children() - before) >= 3)
        family = list_children() - before
    assert wait_for(lambda: not any(is_alive(pid) for pid in family))


def test_a_server_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from bloomery.tasks.infrastructure.tethered_process import tethered_server\n"
        f"with tethered_server({SLEEPER!r}, is_ready=lambda: True, log=Path(sys.argv[1])):\n"
        "    print('started', flush=True); time.sleep(600)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    assert starter.stdout.readline() == b"started\n"
    assert wait_for(lambda: "up" in (tmp_path / "log").read_text())
    family = [process.pid for process in psutil.Process(starter.pid).children(recursive=True)]
    assert len(family) >= 2
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    assert wait_for(lambda: not any(is_alive(pid) for pid in family))


STARTER = (
    "import os, sys, time\nfrom pathlib import Path\n"
    "from bloomery.tasks.infrastructure.tethered_process import tethered_server\n"
    f"with tethered_server({SLEEPER!r}, is_ready=lambda: True, log=Path(sys.argv[1])):\n"
    "    child = os.fork() if 'fork' in sys.argv else -1\n"  # it holds the pipe to the tether
    "    if child:\n"
    "        print(child, flush=True)\n"
    "    time.sleep(600)\n"
)


def start_starter(log: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], list[int], int]:
    """Starts `STARTER` as the leader of a process group. Returns it, its tether and server, and the forked child."""
    command = [sys.executable, "-c", STARTER, str(log), *arguments]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert starter.stdout is not None
    child = int(starter.stdout.readline())
    assert wait_for(lambda: "up" in log.read_text())
    family = {process.pid for process in psutil.Process(starter.pid).children(recursive=True)} - {child}
    assert len(family) >= 2
    return starter, sorted(family), child


def test_a_server_ends_when_the_process_group_of_its_starter_is_killed(tmp_path: Path) -> None:
    starter, family, _ = start_starter(tmp_path / "log")
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    assert wait_for(lambda: not any(is_alive(pid) for pid in family))


def test_a_server_ends_though_a_child_of_its_killed_starter_runs_on(tmp_path: Path) -> None:
    starter, family, child = start_starter(tmp_path / "log", "fork")
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    assert wait_for(lambda: not any(is_alive(pid) for pid in family))
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


def test_a_stopped_tether_is_killed_with_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("ab") as log:
        tether = start_tethered(SLEEPER, log)
    assert wait_for(lambda: "up" in (tmp_path / "log").read_text())
    family = [tether.pid, *(process.pid for process in psutil.Process(tether.pid).children(recursive=True))]
    os.kill(tether.pid, signal.SIGSTOP)
    monkeypatch.setattr("bloomery.tasks.infrastructure.tethered_process._GRACE_S", -4.5)
    stop_tethered(tether)
    assert wait_for(lambda: not any(is_alive(pid) for pid in family))


@pytest.mark.parametrize("has_own_session", [False, True])
def test_child_processes_of_a_killed_server_end_with_it(tmp_path: Path, has_own_session: bool) -> None:
    """Includes workers with a session of their own, such as BentoML's."""
    start_child = f"subprocess.Popen({SLEEPER!r}, start_new_session={has_own_session})"
    parent = f"import subprocess, sys, time; {start_child}; time.sleep(600)"
    with (tmp_path / "log").open("ab") as log:
        tether = start_tethered([sys.executable, "-c", parent], log)
    assert wait_for(lambda: len(psutil.Process(tether.pid).children(recursive=True)) == 2)
    server, child = psutil.Process(tether.pid).children(recursive=True)
    os.kill(server.pid, signal.SIGKILL)
    assert wait_for(lambda: not is_alive(child.pid))
    assert tether.wait(timeout=20) != 0
    assert tether.stdin is not None
    tether.stdin.close()


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the reason')"]
    with (
        pytest.raises(EngineMissing, match="the reason"),
        tethered_server(command, is_ready=lambda: False, log=tmp_path / "log") as wait_until_ready,
    ):
        wait_until_ready()


def test_a_port_in_use_is_reported_with_its_owner() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            require_free_port("127.0.0.1", port)
    assert str(port) in caught.value.found
    assert f"pid {os.getpid()}" in caught.value.where


def test_a_free_port_is_free() -> None:
    require_free_port("127.0.0.1", find_free_port())


def test_servers_are_stopped_at_the_same_time(tmp_path: Path) -> None:
    """Each server ends only after both received the signal: stopped one by one, the first would be killed."""
    code = (
        "import signal, sys, time\nfrom pathlib import Path\nown, other = map(Path, sys.argv[1:])\n"
        "def end(*_):\n"
        "    own.write_text('signalled')\n"
        "    while not other.read_text():\n"
        "        time.sleep(0.02)\n"
        "    own.write_text('ended by itself')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\ntime.sleep(600)\n"
    )
    first, second, log = tmp_path / "first", tmp_path / "second", tmp_path / "log"
    for path in (first, second):
        path.touch()
    with log.open("wb") as stream:
        pairs = ((first, second), (second, first))
        tethers = [start_tethered([sys.executable, "-c", code, *map(str, pair)], stream) for pair in pairs]
    assert wait_for(lambda: log.read_text().count("up") == 2)
    stop_tethered(*tethers)
    assert [first.read_text(), second.read_text()] == ["ended by itself"] * 2
