"""SIGINT, SIGTERM and SIGHUP end a command with all that it has started, also when a whole process group gets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bloomery.tasks.infrastructure.python_processes import code_command, module_command
from tests.conftest import QUICK
from tests.processes import command_of, processes_of, wait_for

Environment = Callable[..., dict[str, str]]
# A run whose only work is a tethered server.
RUN = (
    "import os, sys, time\n"
    "from pathlib import Path\n"
    "from bloomery.flows.cli.main import main\n"
    "from bloomery.flows.execution import local_run\n"
    "from bloomery.tasks.infrastructure.python_processes import code_command\n"
    "from bloomery.tasks.infrastructure.tethered_process import tethered_server\n"
    "marker = Path(os.environ['BLOOMERY_HOME']) / 'up'\n"
    "server = code_command(\"import sys, time; open(sys.argv[1], 'w').close(); time.sleep(600)\", str(marker))\n"
    "def run_recipe(*arguments):\n"
    "    with tethered_server(server, is_ready=lambda: True, log=marker.with_suffix('.log')):\n"
    "        time.sleep(600)\n"
    "local_run.run_recipe = run_recipe\n"
    "main()\n"
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / ".bloomery"
    yield home
    for process in processes_of(home):
        process.kill()


def start(home: Path, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a command as the leader of a process group, as a shell or a CI job does.

    It obeys signals, even if the tests themselves were started in the background or by `nohup`, and ignore some.
    """

    def obey_signals() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=obey_signals,
    )


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Stopped"), (signal.SIGHUP, "Stopped")]
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_signal_to_the_group_ends_all_processes_and_explains_how_to_continue(
    home: Path, clean_environment: Environment, number: signal.Signals, error: str, as_json: bool
) -> None:
    arguments = ["run", "my data.yaml", *(["--json"] if as_json else [])]
    run = start(home, code_command(RUN, *arguments), clean_environment(home))
    wait_for((home / "up").exists)
    os.killpg(run.pid, number)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + number, errors
    assert not processes_of(home)
    text = errors
    if as_json:
        document = json.loads(output)
        assert (document["error"], document["exit_code"]) == (error, 128 + number)
        text = f"{document['found']} {document['remedy']}"
    for words in (number.name, "all processes of this command have ended", "bloomery run 'my data.yaml'", "continues"):
        assert words in text, text


def test_a_killed_group_leaves_no_server(home: Path, clean_environment: Environment) -> None:
    run = start(home, code_command(RUN, "run", "digits"), clean_environment(home))
    wait_for((home / "up").exists)
    os.killpg(run.pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(home), timeout_s=30, what="the end of the server")
    run.communicate()


def test_an_ignored_signal_stays_ignored(home: Path, clean_environment: Environment) -> None:
    """As with `nohup`."""
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    run = start(home, code_command(ignoring + RUN, "run", "digits"), clean_environment(home))
    wait_for((home / "up").exists)
    os.kill(run.pid, signal.SIGHUP)
    time.sleep(0.5)
    assert run.poll() is None
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(timeout=60) == 128 + signal.SIGTERM


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["train", "compress", "promote"])
def test_a_run_that_is_stopped_in_a_stage_leaves_nothing_and_continues(
    tmp_path: Path, clean_environment: Environment, create_home: Callable[[Path], Path], stage: str, number: int
) -> None:
    home = create_home(tmp_path / ".bloomery")
    command = module_command("bloomery.flows.cli", "run", str(QUICK))
    run = start(home, command, clean_environment(home))
    if stage == "promote":  # whose bento is served by then
        wait_for(lambda: any("serve_process.py" in command_of(process) for process in processes_of(home)))
    else:
        wait_for(lambda: list((home / "stages" / ".tmp").glob(f"{stage}-*")), step_s=0.001)
    os.killpg(run.pid, number)
    _, errors = run.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert run.returncode == 128 + number, errors
        assert f"stopped by {signal.Signals(number).name}" in errors
    wait_for(lambda: not processes_of(home), timeout_s=30, what="the end of all processes")
    completed = subprocess.run(command, env=clean_environment(home), capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "found" in completed.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.nightly)])
def test_a_signal_stops_a_served_champion_with_its_workers(
    finished_run: tuple[Path, dict[str, Any]], tmp_path: Path, clean_environment: Environment, number: signal.Signals
) -> None:
    from bloomery.tasks.infrastructure.tethered_process import find_free_port
    from tests.processes import responds

    port = find_free_port()
    command = module_command("bloomery.flows.cli", "serve", "digits", "--port", str(port))
    server = start(finished_run[0], command, clean_environment(finished_run[0]))
    wait_for(lambda: server.poll() is not None or responds(f"http://127.0.0.1:{port}/readyz"))
    workers = psutil.Process(server.pid).children(recursive=True)
    os.killpg(server.pid, number)
    _, errors = server.communicate(timeout=60)
    assert f"stopped by {number.name}: the endpoint has ended" in errors
    assert f"run `bloomery serve digits --port {port}` again" in errors
    assert not psutil.wait_procs(workers, timeout=30)[1]
