"""The README agrees with the code: commands, recipes, links and the captured output."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from bloomery.flows.cli.main import app
from bloomery.flows.recipe.recipe import read_recipe

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]


def test_every_bloomery_command_parses_and_every_command_is_listed() -> None:
    group = typer.main.get_command(app)
    commands = [shlex.split(line)[1:] for line in LINES if line.startswith("bloomery ")]
    for name, *arguments in commands:
        # Parses as the command line does, but runs nothing.
        group.commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]
    assert {name for name, *_ in commands} == set(group.commands)  # type: ignore[attr-defined]


def test_every_make_command_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    make_targets = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert make_targets == {"run", "test", "up", "status", "down"}
    assert make_targets <= targets


def test_recipes_that_the_commands_name_exist() -> None:
    for line in LINES:
        if line.startswith(("bloomery run", "bloomery check")):
            read_recipe(line.split()[2])


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("prefect ")])
def test_every_prefect_command_is_known_to_prefect(line: str) -> None:
    words = [word for word in shlex.split(line)[1:] if not word.startswith("-")]
    command = words[:2] if words[0] in ("server", "work-pool", "worker", "deployment") else words[:1]
    completed = subprocess.run(
        [Path(sys.executable).parent / "prefect", *command, "--help"], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_captured_output_has_the_table_of_candidates() -> None:
    capture = next(block for block in BLOCKS if "candidates on the held-out rows" in block)
    for words in ("pruned-int8", "chosen", "registered", "prediction", "next:"):
        assert words in capture
