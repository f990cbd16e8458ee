"""`docs/cli.md` is up to date, and every help line is short."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

from bloomery.flows.cli.main import app
from bloomery.flows.cli.reference import render_reference

ROOT = Path(__file__).resolve().parents[3]
MAX_WORDS = 12


def help_lines(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every help text below a command, with what it is about."""
    yield name, command.help or ""
    for parameter in command.params:
        yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
    if isinstance(command, TyperGroup):
        for child, subcommand in command.commands.items():
            yield from help_lines(subcommand, f"{name} {child}")


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == render_reference(), "run: python -m bloomery.flows.cli.reference > docs/cli.md"


def test_every_help_line_is_there_and_short() -> None:
    lines = dict(help_lines(get_command(app), "bloomery"))
    assert len(lines) > 80
    assert [name for name, text in lines.items() if not text] == []
    assert {name: text for name, text in lines.items() if len(text.split()) > MAX_WORDS} == {}
