"""Drafts of contracts and recipes for tests, and data to draft them from."""

import csv
import random
from pathlib import Path

from bloomery.data_contracts.records.records import ValidRows
from bloomery.flows.cli.commands.init import write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.ingest.stage import ingest, locate_source
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from bloomery.tasks.validate.stage import validate


def draft_recipe(
    folder: Path, source: Path | str, label: str, options: UserOptions | None = None, key: str | None = None
) -> Recipe:
    """Drafts a recipe for `source` and reads it."""
    roles = ColumnRoles(label, key)
    draft = write_drafts("mine", [str(source)], roles, options or UserOptions(), output=folder, force=True)
    return read_recipe(str(draft.recipe))


def validate_rows(recipe: Recipe) -> ValidRows:
    """Ingests and validates the rows of a recipe."""
    return validate(ingest(locate_source(recipe.data)), recipe.contract)


def input_kinds(recipe: Recipe) -> dict[str, str]:
    """Returns the kind or encoding of the input that reads each column."""
    return {
        column: getattr(source, "encoding", source.kind)
        for source in recipe.features.inputs
        for column in source.columns
    }


def write_shop(path: Path) -> None:
    """Writes a CSV file with every type, nulls, accents, quoted newlines, awkward names and a malformed line."""
    chance = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter=";")
        names = ("hours per week", "a.b", "1st", "класс", "when", "day", "ok", "note", "email", "zip", "same", "empty")
        rows.writerow([*names, "bought"])
        for number in range(900):
            is_bought = chance.random() < 0.4
            cells = [
                "?" if number % 7 == 0 else chance.randint(1, 80),
                f"{chance.gauss(3 if is_bought else 0, 1):.3f}",
                chance.choice(["red", "green", 'bl"ue', "two\nlines", ""]),
                chance.choice(["né", "été", "да"]),
                f"2024-0{chance.randint(1, 9)}-1{chance.randint(0, 9)} 0{chance.randint(0, 9)}:15:00",
                f"2023-1{chance.randint(0, 2)}-2{chance.randint(0, 8)}" if number % 9 else "",
                chance.choice(["true", "false"]),
                f"free text {number} ü {chance.random()}",
                f"user{number}@example.org",
                f"0{chance.randint(1000, 1080)}",
                "x",
                "",
            ]
            rows.writerow([*cells, "ja" if is_bought else "nein"])
            if number == 500:
                file.write("a;broken;line\r\n")


def rename_columns(path: Path, names: dict[str, str], key: str) -> None:
    """Renames columns of a CSV file, and puts a column that numbers the rows in front."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, delimiter=";")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow([key, *(names.get(name, name) for name in header)])
        writer.writerows([number, *row] for number, row in enumerate(rows))


HALVES = "".join(f"{number % 7},{number % 5},{number % 2}\n" for number in range(100))
