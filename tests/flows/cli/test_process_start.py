"""Commands start with closed streams, in any encoding, with proxies, and with options of Python."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bloomery.flows.cli.display import LineConsole
from bloomery.tasks.infrastructure.engine_environment import (
    direct_loopback_variables,
    state_folder,
    user_variables,
)
from bloomery.tasks.infrastructure.python_processes import code_command, module_command

Environment = Callable[..., dict[str, str]]
# A command that uses all streams, as every command does.
CODE = (
    "from bloomery.flows.cli import main\n"
    "from bloomery.flows.cli.exit_codes import command_session\n"
    "import os, warnings\n"
    "def app():\n"
    "    with command_session(False, 'show') as out:\n"
    "        warnings.warn('of an engine', DeprecationWarning)\n"
    "        out.print('\\u2713 done \\u4ef7')\n"
    "        out.print(os.environ.get('PYTHONWARNINGS', 'no warnings'))\n"
    "main.app = app\n"
    "main.main()\n"
)


def start(environment: dict[str, str], shell_suffix: str = "") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f'"$@" {shell_suffix}', "sh", *code_command(CODE)], env=environment, capture_output=True
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_with_closed_streams(tmp_path: Path, clean_environment: Environment, closed: str) -> None:
    completed = start(clean_environment(tmp_path / "home"), closed)
    assert completed.returncode == 0, completed.stderr
    assert (b"done" in completed.stdout) == (closed in ("<&-", "2>&-"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_letter_that_the_encoding_lacks_is_replaced(
    tmp_path: Path, clean_environment: Environment, encoding: str
) -> None:
    completed = start(clean_environment(tmp_path / "home", PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C"))
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.splitlines()[0] == "✓ done 价".encode(encoding, errors="replace")


def test_warnings_of_engines_are_no_errors(tmp_path: Path, clean_environment: Environment) -> None:
    completed = start(clean_environment(tmp_path / "home", PYTHONWARNINGS="error"))
    assert completed.returncode == 0, completed.stderr
    assert b"no warnings" in completed.stdout


def test_python_without_docstrings_is_refused(tmp_path: Path, clean_environment: Environment) -> None:
    completed = subprocess.run(
        module_command("bloomery.flows.cli", "show", "digits"),
        env=clean_environment(tmp_path / "home", PYTHONOPTIMIZE="2"),
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 2
    assert "unset PYTHONOPTIMIZE" in completed.stderr


def test_a_reader_that_has_ended_does_not_end_the_command() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        console = LineConsole(file=stream)
        for _ in range(3):
            console.print("a line")
            console.file.flush()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"http_proxy": ""}, None),
        ({"http_proxy": "http://proxy"}, "localhost,127.0.0.1,::1"),
        (
            {"ALL_PROXY": "socks5://proxy", "NO_PROXY": "intra.example, 127.0.0.1"},
            "intra.example,127.0.0.1,localhost,::1",
        ),
        ({"HTTPS_PROXY": "http://proxy", "no_proxy": "*"}, "*"),
    ],
)
def test_servers_on_this_machine_are_reached_without_a_proxy(environment: dict[str, str], expected: str | None) -> None:
    variables = direct_loopback_variables(environment)
    assert variables == ({} if expected is None else {"no_proxy": expected, "NO_PROXY": expected})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_output_that_cannot_be_written_is_reported(tmp_path: Path, clean_environment: Environment) -> None:
    completed = start(clean_environment(tmp_path / "home"), "> /dev/full")
    assert completed.returncode == 1
    assert b"No space left on device" in completed.stderr
    assert b"Traceback" not in completed.stderr


def test_the_state_folder_has_a_path_in_any_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_folder({"BLOOMERY_HOME": ""}) == Path.cwd() / ".bloomery"
    assert state_folder({"BLOOMERY_HOME": "~nobody-of-this-name/x"}) == Path.cwd() / "~nobody-of-this-name" / "x"

    def fail() -> str:
        raise FileNotFoundError("deleted")

    monkeypatch.setattr(os, "getcwd", fail)
    assert state_folder({}) == Path(".bloomery")


def test_a_user_id_without_a_name_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", fail)
    assert user_variables() == {"LOGNAME": f"uid{os.getuid()}"}
    monkeypatch.setenv("LOGNAME", user_variables()["LOGNAME"])
    assert user_variables() == {}
    assert getpass.getuser() == f"uid{os.getuid()}"
