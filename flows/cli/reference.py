"""Writes the reference of the command line as Markdown: `python -m bloomery.flows.cli.reference > docs/cli.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from bloomery.flows.cli.main import app

_HEADER = """# Command line

`bloomery COMMAND --help` prints the help of a command. Every command takes `--json`, which prints one JSON document
and nothing else.

Exit codes: 0 success, 2 invalid usage or recipe, 3 contract violated, 4 no candidate passed or the release was refused,
1 any other error.

This page is generated: `python -m bloomery.flows.cli.reference > docs/cli.md`.
"""


def render_reference() -> str:
    """Returns an overview of all commands, then each with its arguments and options."""
    commands = dict(_commands(get_command(app), "bloomery"))
    lines = [_HEADER, "| command | purpose |", "| --- | --- |"]
    lines += [
        f"| [{name}](#{name.replace(' ', '-')}) | {_escape(command.help)} |" for name, command in commands.items()
    ]
    for name, command in commands.items():
        lines += ["", *_section(name, command)]
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the commands below a group by name. Their types are private to Typer."""
    if isinstance(command, TyperGroup):
        for child, subcommand in command.commands.items():
            yield from _commands(subcommand, f"{name} {child}")
    else:
        yield name, command


def _section(name: str, command: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    yield from (f"## {name}", "", _escape(command.help), "")
    yield f"    {name} {' '.join(command.collect_usage_pieces(context))}"
    parameters = [item for item in command.get_params(context) if item.name not in ("help", "as_json")]
    records = [parameter.get_help_record(context) for parameter in parameters]
    if records:
        yield from ("", "| parameter | meaning |", "| --- | --- |")
        yield from (f"| `{_escape(label)}` | {_escape(text)} |" for label, text in records)


def _escape(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


def main() -> None:
    sys.stdout.write(render_reference())


if __name__ == "__main__":
    main()
