"""Files as people have them become drafts: how they are written is found and told, and every row is in a count."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bloomery.data_contracts.errors import BloomeryError, DataMissing, DataUnfit, RecipeInvalid
from bloomery.flows.cli.main import app
from bloomery.tasks.scaffolding import recipe_draft
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.drafts import draft_recipe, input_kinds, validate_rows


def write_rows(path: Path, pattern: str, header: str, num: int = 240, **replaced: str) -> None:
    """Writes lines with the number n, a fraction f and a label y; `replaced` has other lines by `line_N`."""
    lines = [
        pattern.format(n=number, f=(number * 37 % 100) / 8, y="yes" if number % 5 < 3 else "no")
        for number in range(num)
    ]
    for name, text in replaced.items():
        lines[int(name.removeprefix("line_"))] = text
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def run_init(*arguments: str) -> Any:
    """Runs the command in this process, and returns its JSON document."""
    result = CliRunner().invoke(app, ["init", "mine", *arguments, "--json"])
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("file", "label", "options", "numbers", "num_rows", "num_quarantined"),
    [
        ("comma.csv", "bought", {"delimiter": ";", "decimal": ","}, {"a", "b"}, 240, 0),
        ("eu1.csv", "klasse", {"delimiter": ";", "decimal": ","}, {"preis", "menge"}, 200, 0),
        ("thousands.csv", "bought", {"thousands": ","}, {"income", "b"}, 240, 0),
        ("typo.csv", "bought", {}, {"a", "b"}, 239, 1),
        ("unclosed.csv", "bought", {}, {"a"}, 239, 1),
        ("trailing.csv", "bought", {"trailing_delimiter": True}, {"a", "b"}, 240, 0),
        ("title.csv", "bought", {"skip_lines": 2}, {"a", "b"}, 240, 0),
        ("single.csv", "bought", {"quote": "'"}, {"a"}, 240, 0),
    ],
)
def test_files_that_failed_once_are_drafted(
    file: str,
    label: str,
    options: dict[str, Any],
    numbers: set[str],
    num_rows: int,
    num_quarantined: int,
    datasets: Path,
    home: Path,
    tmp_path: Path,
) -> None:
    path = datasets.parent / "cases" / file
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    recipe = draft_recipe(tmp_path, path, label)
    assert options.items() <= recipe.data.model_dump().items()
    assert {column for column, kind in input_kinds(recipe).items() if kind == "number"} == numbers
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (num_rows, num_quarantined)


def test_the_cell_that_is_no_number_is_named_and_its_row_quarantined(home: Path, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "rows.csv",
        "{n},{f},{y}",
        "a,b,label",
        line_17="abc,1.5,yes",
        line_18="a,b,label",
        line_30="3,inf,no",
    )
    document = run_init("--data", str(tmp_path / "rows.csv"), "--label", "label", "-o", str(tmp_path))
    inferred = [(inference["name"], inference["value"]) for inference in document["inferred"]]
    assert ("quarantined", "a: 1 value is not of type integer, such as 'abc'") in inferred
    assert ("quarantined", "b: 1 value is not of type number, such as 'inf'") in inferred
    assert ("malformed", "1 lines; first malformed line: rows.csv, line 20: it repeats the header") in inferred
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (237, 3)
    assert set(input_kinds(recipe)) == {"a", "b"}


def test_numbers_in_another_notation_reach_the_contract(home: Path, tmp_path: Path) -> None:
    header = "Umsatz;Anteil;label"
    write_rows(tmp_path / "rows.csv", "1.{n:03},5{n} €;{n},25 %;{y}", header, line_3="n/a;?;no", line_4="12,5;viel;no")
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert (recipe.data.decimal, recipe.data.thousands, recipe.data.units) == (",", ".", ("€", "%"))
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (239, 1)
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert "12% is read as 12" in " ".join(text.replace("#", "").split())


def test_the_printed_paths_and_commands_can_be_copied(home: Path, tmp_path: Path) -> None:
    """Also where the folder has a blank and its path is longer than a line."""
    write_rows(tmp_path / "rows.csv", "{n},{f},{y}", "a,b,label")
    folder = tmp_path / f"my drafts {'x' * 60}"
    arguments = ["--data", str(tmp_path / "rows.csv"), "--label", "label", "-o", str(folder)]
    output = CliRunner().invoke(app, ["init", "mine", *arguments]).stdout
    assert f"written: {folder}/mine.odcs.yaml and {folder}/mine.yaml\n" in output
    assert f"  bloomery run '{folder}/mine.yaml'\n" in output


def test_a_loss_of_many_lines_is_an_error_that_names_the_options(home: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", "{n},x,{y}", "a,b,label", **{f"line_{number}": "1,2" for number in range(80)})
    with pytest.raises(
        DataUnfit, match=r"80 of 240 rows are malformed; first malformed line: rows\.csv, line 2: 2 cell"
    ) as caught:
        draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert "--quote" in caught.value.remedy
    assert not (tmp_path / "mine.yaml").exists()


OPTIONS = [
    ("made today\nlabel,x\n;a,b,label\n{rows}", ["--skip-lines", "2"], {"skip_lines": 2}),
    ("%a,label\n;a,b,label\n{rows}", ["--skip-lines", "1", "--comment", "%"], {"skip_lines": 1, "comment": "%"}),
    ("a,b,label\n{rows}", ["--missing", "7", "--missing", "x", "--no-strip"], {"strip": False}),
    (
        "a,b,label\n{rows}",
        ["--delimiter", ",", "--quote", "", "--encoding", "latin-1"],
        {"quote": "", "encoding": "latin-1"},
    ),
    (
        "a,b,label\n{rows}",
        ["--thousands", " ", "--numbers", "a", "--units", "kg"],
        {"numbers": ("a",), "units": ("kg",)},
    ),
    ("{rows}", ["--no-header", "--label", "column_3"], {"header": False}),
    ("{rows}", ["--columns", "a, b,label"], {"columns": ("a", "b", "label")}),
    ("a,b,label\n{rows}", ["--drop", "a"], {"drop": ("a",)}),
    ("a,b,label\n{rows}", ["--escape", "\\", "--header", "--decimal", "."], {"escape": "\\"}),
]


@pytest.mark.parametrize(("text", "arguments", "options"), OPTIONS)
def test_every_option_to_read_a_file_is_one_of_the_command(
    text: str, arguments: list[str], options: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    rows = "".join(f"{number},{number % 7},{'yes' if number % 2 else 'no'}\n" for number in range(60))
    (tmp_path / "rows.csv").write_text(text.format(rows=rows))
    label = [] if "--label" in arguments else ["--label", "label"]
    document = run_init("--data", str(tmp_path / "rows.csv"), "-o", str(tmp_path), *label, *arguments)
    assert "error" not in document, document
    data = yaml.safe_load((tmp_path / "mine.yaml").read_text())["data"]
    assert {
        name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
    }.items() >= options.items()


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_inside_of_a_document_are_found(indent: int | None, home: Path, tmp_path: Path) -> None:
    rows = [{"a": number % 7, "label": "yes" if number % 2 else "no"} for number in range(60)]
    others = [{"b": 1, "label": "x"}]
    document = {"meta": 1, "found": {"others": others, "rows": rows}}
    (tmp_path / "rows.json").write_text(json.dumps(document, indent=indent))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.json", "label")
    assert (recipe.data.records, validate_rows(recipe).num_rows) == ("found.rows", 60)
    with pytest.raises(DataMissing, match=r"there is no 'row' of 'found\.row'") as caught:
        draft_recipe(tmp_path, tmp_path / "rows.json", "label", UserOptions(records="found.row"))
    assert "--records" in caught.value.remedy


def test_arrays_with_names_beside_them_are_rows(home: Path, tmp_path: Path) -> None:
    rows = [[number % 7, "yes" if number % 2 else "no"] for number in range(60)]
    document = {"columns": ["a", "label"], "index": list(range(60)), "data": rows}  # as pandas writes it
    (tmp_path / "rows.json").write_text(json.dumps(document))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.json", "label")
    assert (recipe.data.records, recipe.data.columns) == ("data", ("a", "label"))
    assert validate_rows(recipe).num_rows == 60


def test_options_of_another_format_are_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1, "label": 2}\n')
    with pytest.raises(RecipeInvalid, match="delimiter, skip_lines: no meaning for a source of format jsonl"):
        draft_recipe(tmp_path, tmp_path / "rows.jsonl", "label", UserOptions(delimiter=";", skip_lines=2))


@pytest.mark.parametrize(
    ("content", "label"),
    [(b"", "a"), (b"a,,b\n", "a"), (b"a\rb\r1\r", "b"), (b"a,a\n1,2\n", "a"), (b"a,b\n1,2\n", "c"), (b"\x00a", "a")],
)
def test_errors_of_reading_name_no_file_that_is_not_there(
    content: bytes, label: str, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(BloomeryError) as caught:
        draft_recipe(tmp_path, tmp_path / "rows.csv", label)
    assert "recipe" not in str(caught.value)


def test_a_draft_that_cannot_run_yet_is_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "rows.csv", "{n},{f},{y}", "a,b,label")
    draft = recipe_draft.draft_recipe
    monkeypatch.setattr(recipe_draft, "draft_recipe", lambda *arguments: f"{draft(*arguments)}unknown: 1\n")
    with pytest.raises(RecipeInvalid, match="the draft cannot run yet: ") as caught:
        draft_recipe(tmp_path, tmp_path / "rows.csv", "label")
    assert (tmp_path / "mine.yaml").is_file()
    assert (tmp_path / "mine.odcs.yaml").is_file()
    assert f"edit them, then run `bloomery check {tmp_path / 'mine.yaml'}`" in caught.value.remedy
    assert ".init-" not in str(caught.value)
    assert [*tmp_path.glob(".init-*")] == []


def test_na_without_quotes_is_missing_where_texts_are_in_quotes(home: Path, tmp_path: Path) -> None:
    """As R writes factors; in quotes, NA is a text such as the code of Namibia."""
    write_rows(
        tmp_path / "rows.csv",
        '"{n}","{y}",{f},"NA"',
        '"id","vote","age","country"',
        line_3='"3",NA,NA,"NA"',
        line_5='"5","no",7,NA',
        line_9='"9",NA,9,"US"',
    )
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "vote")
    assert recipe.data.unquoted_missing == ("NA",)
    assert recipe.data.missing is None
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (238, 2)
    contract = (tmp_path / "mine.odcs.yaml").read_text(encoding="utf-8")
    assert "validValues: [no, yes]" in contract.replace("'", "").replace('"', "")
    write_rows(tmp_path / "bare.csv", "{n},{y},{f},NA", "id,vote,age,country", line_3="3,NA,NA,US")
    assert draft_recipe(tmp_path, tmp_path / "bare.csv", "vote").data.unquoted_missing is None
