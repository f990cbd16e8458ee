"""Runs a command of the command line in a process of its own: the engines need one, and a notebook has an event loop.

The module run as a program executes the command. Its JSON document goes to a file, its progress to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bloomery.data_contracts import errors
from bloomery.data_contracts.errors import BloomeryError, EngineMissing, SettingInvalid
from bloomery.flows.python_api.state_folder import follow_state_folder
from bloomery.tasks.infrastructure.python_processes import module_command
from bloomery.tasks.infrastructure.tethered_process import start_tethered, stop_tethered

_OUTPUT = {
    "COLUMNS": "120",
    "FORCE_COLOR": "",
    "CLICOLOR_FORCE": "0",
    "NO_COLOR": "1",  # Jupyter asks every process for colours
    "MPLBACKEND": "Agg",
    "PYTHONWARNINGS": "ignore",  # those of engines would be shown in the notebook
}


def call_command(*arguments: str) -> dict[str, Any]:
    """Runs `bloomery ARGUMENTS --json`, prints its progress line by line, and returns its document.

    The process ends with this one. An interrupt stops the command as Ctrl-C does.

    Raises:
        BloomeryError: the command has failed; of the class that the command reports.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        code, lines = _run(result, arguments)
        text = result.read_text(encoding="utf-8").strip() if result.is_file() else ""
    try:
        document: dict[str, Any] = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        raise _usage_error(code, lines, arguments) from None
    if "error" in document:
        raise _error_of(document)
    return document


def _run(result: Path, arguments: tuple[str, ...]) -> tuple[int, list[str]]:
    """Returns the exit code and the lines that were printed."""
    follow_state_folder()
    command = module_command(__name__, str(result), *arguments, "--json")
    reader, writer = os.pipe()
    lines = []
    with os.fdopen(reader, encoding="utf-8", errors="replace") as output:
        with os.fdopen(writer, "wb") as stream:
            tether = start_tethered(command, stream, _OUTPUT)
        try:
            for line in output:
                lines.append(line.rstrip())
                print(line, end="", flush=True)
            return tether.wait(), lines
        finally:
            stop_tethered(tether)


def _usage_error(code: int, lines: list[str], arguments: tuple[str, ...]) -> BloomeryError:
    """The error of a command that has written no document: wrong usage, or the process was killed."""
    words = [line.strip("│╭╰─ ╮╯") for line in lines]
    message = " ".join(word for word in words if word and not word.startswith(("Usage:", "Try ", "Error")))
    if code == 2:
        return SettingInvalid(
            message or "the arguments are not valid",
            required="arguments as the command has them",
            where=f"the call of bloomery.{arguments[0]}",
            remedy=f"`bloomery {arguments[0]} --help` describes them",
        )
    return EngineMissing(
        f"the process of `bloomery {arguments[0]}` ended with {code}" + (f": {message[-300:]}" if message else ""),
        required="a process that completes",
        where="the memory and the limits of this machine, if the process was killed",
        remedy="call it again: complete stages are kept; `bloomery doctor` checks this machine",
    )


def _error_of(document: dict[str, Any]) -> BloomeryError:
    kind = getattr(errors, document["error"], None)
    if isinstance(kind, type) and issubclass(kind, BloomeryError):
        fields = {name: str(document[name]) for name in ("required", "where", "remedy")}
        return kind(str(document["found"]), **fields)
    return BloomeryError(
        f"{document['error']}: {document['found']}",
        required="a command that completes",
        where="the process of the command; its log is in the folder `logs` of the state folder",
        remedy=str(document.get("remedy", "read the end of that log")),
    )


def _execute(result: str, arguments: list[str]) -> None:
    """Executes the command in this process, and ends it."""
    from bloomery.flows.cli.display import LineConsole, ProgressDisplay
    from bloomery.flows.cli.main import main

    with open(os.dup(1), "w", encoding="utf-8") as progress:
        document = os.open(result, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(document, 1)
        sys.argv = ["bloomery", *arguments]
        with ProgressDisplay(LineConsole(file=progress, force_terminal=False)):
            main()


if __name__ == "__main__":
    _execute(sys.argv[1], sys.argv[2:])
