"""JSON as people have it becomes a draft: values of several types, other encodings, lists of rows inside."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bloomery.flows.cli.main import app
from tests.flows.cli.commands.drafts import draft_recipe, input_kinds, validate_rows

ROWS: list[dict[str, Any]] = [
    {
        "a": number % 90,
        "b": number * 37 % 100 / 8,
        "c": "xé" if number % 3 else "y",
        "label": "no" if number % 5 else "yes",
    }
    for number in range(240)
]


def write_lines(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding=encoding)
    return path


def test_a_text_in_a_column_of_numbers_costs_its_row(home: Path, tmp_path: Path) -> None:
    rows = [{**row, "a": "abc"} if number == 61 else row for number, row in enumerate(ROWS)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    arguments = ["init", "mine", "--data", str(path), "--label", "label", "-o", str(tmp_path), "--json"]
    document = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert (document["num_rows"], document["num_malformed"], document["num_quarantined"]) == (239, 1, 1)
    reasons = [inference["value"] for inference in document["inferred"] if inference["name"] == "malformed"]
    assert reasons == [
        '1 lines; first malformed line: rows.jsonl, line 62: column a: "abc" is no number, unlike nearly all other '
        "values"
    ]


def test_what_stands_for_a_missing_number_is_missing(home: Path, tmp_path: Path) -> None:
    rows = [
        {**row, "a": "NA" if number % 9 == 0 else row["a"], "b": math.nan if number % 7 == 0 else row["b"]}
        for number, row in enumerate(ROWS)
    ]
    recipe = draft_recipe(tmp_path, write_lines(tmp_path / "rows.jsonl", rows), "label")
    assert recipe.data.missing == {"a": ("NA",), "b": ("NaN",)}
    assert input_kinds(recipe) == {"a": "number", "b": "number", "c": "one_hot"}
    rows_read = validate_rows(recipe)
    assert (rows_read.num_rows, rows_read.num_quarantined) == (240, 0)


def test_numbers_are_found_where_every_value_is_a_text(home: Path, tmp_path: Path) -> None:
    rows = [{**{name: str(value) for name, value in row.items()}, "zip": f"{row['a']:05}"} for row in ROWS]
    rows[7]["b"] = ""
    recipe = draft_recipe(tmp_path, write_lines(tmp_path / "rows.jsonl", rows), "label")
    assert (recipe.data.numbers, recipe.data.missing) == (("a", "b"), {"b": ("",)})
    assert input_kinds(recipe)["a"] == "number"
    assert input_kinds(recipe)["zip"] != "number"
    assert validate_rows(recipe).num_rows == 240


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("form", ["lines", "document"])
def test_the_encoding_of_json_is_found(form: str, encoding: str, home: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.json", ROWS, encoding)
    if form == "document":
        document = {"response": {"data": ROWS, "total": 240}}
        path.write_text(json.dumps(document, ensure_ascii=False), encoding=encoding)
    recipe = draft_recipe(tmp_path, path, "label")
    assert recipe.data.kind == ("json" if form == "document" else "jsonl")
    assert recipe.data.records == ("response.data" if form == "document" else None)
    assert recipe.data.encoding == (None if encoding == "utf-8-sig" else encoding)
    assert "xé" in (tmp_path / "mine.odcs.yaml").read_text(encoding="utf-8")
    assert validate_rows(recipe).num_rows == 240
