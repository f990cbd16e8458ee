"""A run on a busy machine, whose Prefect server is killed and then stopped, still releases its champion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bloomery.tasks.infrastructure.python_processes import code_command
from tests.conftest import QUICK
from tests.processes import command_of, processes_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

# The command line, which replaces a server after seconds instead of a minute.
COMMAND = (
    "from bloomery.flows.cli.main import main\n"
    "from bloomery.tasks.infrastructure import restarting_server\n"
    "restarting_server._UNRESPONSIVE_S = 5.0\n"
    "restarting_server._STARTING_S = 20.0\n"
    "restarting_server._PROBE_INTERVAL_S = 1.0\n"
    "main()\n"
)


@pytest.fixture
def busy_processors() -> Iterator[None]:
    """A process on each processor that never waits."""
    processes = [subprocess.Popen(code_command("while True: pass")) for _ in range(os.cpu_count() or 1)]
    yield
    for process in processes:
        process.kill()
        process.wait()


def find_server(home: Path) -> psutil.Process | None:
    """Returns the Prefect server of the run, without its tether."""
    for process in processes_of(home):
        command = command_of(process)
        if "uvicorn_process" in command and "tethered_process" not in command:
            return process
    return None


@pytest.mark.usefixtures("busy_processors")
def test_a_starved_run_with_a_dying_server_releases_its_champion(
    tmp_path: Path, clean_environment: Callable[..., dict[str, str]], create_home: Callable[[Path], Path]
) -> None:
    home = create_home(tmp_path / ".bloomery")
    script = tmp_path / "command.py"  # in a file, since PySpark ends a main module that has none
    script.write_text(COMMAND)
    run = subprocess.Popen(
        ["nice", "-n", "5", sys.executable, "-P", str(script), "run", str(QUICK)],
        env=clean_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = home / "logs" / "prefect-server.log"

    def is_training() -> bool:
        assert run.poll() is None, run.communicate()[0] + log.read_text()
        return any((home / "stages" / ".tmp").glob("train-*"))

    wait_for(is_training, timeout_s=600, step_s=0.01)
    killed_server = wait_for(lambda: find_server(home))
    killed_server.kill()
    stopped_server = wait_for(lambda: (server := find_server(home)) and server.pid != killed_server.pid and server)
    stopped_server.suspend()
    output = run.communicate(timeout=1200)[0]
    assert run.returncode == 0, output
    assert output.count("Prefect's server is started again") >= 2, output
    (record,) = home.glob("stages/promote/*/record.json")
    assert json.loads(record.read_text())["record"]["alias"] == "champion"
    wait_for(lambda: not processes_of(home), timeout_s=60)
