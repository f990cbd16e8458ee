"""`bloomery contract`: output, files and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from bloomery.flows.cli.commands.contracts import CONTRACTS
from bloomery.flows.cli.main import app

DIGITS = CONTRACTS / "digits.odcs.yaml"


@pytest.fixture
def call() -> Callable[..., Result]:
    return lambda *arguments: CliRunner().invoke(app, ["contract", *map(str, arguments)])


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Writes the contract of digits with text replaced."""

    def write(*pairs: tuple[str, str]) -> Path:
        text = DIGITS.read_text(encoding="utf-8")
        for old, new in pairs:
            assert text.count(old) == 1
            text = text.replace(old, new)
        path = tmp_path / "edited.odcs.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


NARROWER = ("minimum: 0, maximum: 16", "minimum: 0, maximum: 15")
WIDER = ("minimum: 0, maximum: 16", "minimum: 0, maximum: 17")
OTHER_DESCRIPTION = ("description: The digit that was asked for.", "description: The digit.")


def version(number: str) -> tuple[str, str]:
    return "version: 1.0.0", f"version: {number}"


def test_a_contract_is_shown_by_name_and_by_path(call):
    by_name = call("show", "digits")
    assert by_name.exit_code == 0
    assert by_name.stdout == call("show", DIGITS).stdout
    for words in ("digits 1.0.0", "image[]", "array of uint8", "must have at least 100 rows"):
        assert words in by_name.stdout


def test_a_contract_is_shown_as_one_document(call):
    document: dict[str, Any] = json.loads(call("show", "digits", "--json").stdout)
    assert [column["name"] for column in document["columns"]] == ["id", "image", "label"]
    assert document["rules"][0] == {
        "sentence": "must have at least 100 rows",
        "target": "",
        "kind": "num_rows",
        "low": 100,
    }


@pytest.mark.parametrize(
    ("pairs", "code", "needed"),
    [
        ((), 0, "1.0.0"),
        ((version("1.0.1"),), 0, "1.0.0"),
        ((OTHER_DESCRIPTION,), 3, "1.0.1"),
        ((OTHER_DESCRIPTION, version("1.0.1")), 0, "1.0.1"),
        ((WIDER, version("1.0.1")), 3, "1.1.0"),
        ((WIDER, version("1.1.0")), 0, "1.1.0"),
        ((NARROWER, version("1.9.0")), 3, "2.0.0"),
        ((NARROWER, version("2.0.0")), 0, "2.0.0"),
        ((version("0.9.0"),), 3, "1.0.0"),
    ],
)
def test_the_exit_code_says_whether_the_version_is_high_enough(call, edited, pairs, code, needed):
    path = edited(*pairs)
    result = call("diff", "digits", path)
    assert result.exit_code == code, result.output
    if code:
        assert f"required: version {needed} or later" in result.stderr
    result = call("diff", "digits", path, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["version_needed"], document["is_enough"]) == (code, needed, code == 0)


def test_changes_are_printed_even_where_the_version_is_too_low(call, edited):
    result = call("diff", "digits", edited(NARROWER))
    assert "breaking" in result.stdout
    assert "image[]: must be at least 0 and at most 16, and now must be at least 0 and at most 15" in result.stdout
    assert "VersionTooLow" in result.stderr


def test_a_page_is_written_completely(call, tmp_path):
    output = tmp_path / "new" / "digits.html"
    assert call("page", "digits", "--output", output).exit_code == 0
    assert output.read_text(encoding="utf-8").endswith("</html>\n")
    assert [path.name for path in output.parent.iterdir()] == ["digits.html"]


def test_a_page_that_cannot_be_written_is_reported(call, tmp_path):
    (tmp_path / "file").write_text("")
    result = call("page", "digits", "--output", tmp_path / "file" / "digits.html")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize("command", [("show", "nix"), ("page", "nix", "-o", "nix.html"), ("diff", "nix", "digits")])
def test_a_missing_contract_is_reported_with_the_known_names(call, command):
    result = call(*command)
    assert result.exit_code == 2
    assert "required: one of " in result.stderr
    assert "digits" in result.stderr


BAKERY = Path(__file__).parents[3] / "data_contracts" / "odcs" / "bakery.odcs.yaml"
PUBLISHED = sorted(Path("/work/shared/cases/odcs").glob("*.odcs.yaml"))


@pytest.mark.parametrize("path", [BAKERY, *PUBLISHED], ids=lambda path: path.name)
def test_a_contract_of_other_tools_is_shown_compared_and_written_as_a_page(call, path, tmp_path):
    assert call("show", path).exit_code == 0
    document = json.loads(call("show", path, "--json").stdout)
    assert document["contract"]["id"] == yaml.safe_load(path.read_text())["id"]
    assert [table["name"] for table in document["tables"]] == [
        table["name"] for table in document["contract"].get("schema", [])
    ]
    assert json.loads(call("diff", path, path, "--json").stdout)["changes"] == []
    assert call("page", path, "--output", tmp_path / "page.html").exit_code == 0


def test_the_tables_of_a_contract_are_shown_with_what_is_not_checked(call):
    output = call("show", BAKERY).stdout
    for words in ("bakery-contract 2.4.1, in review", "table orders", "table shops", "not checked:", "uniqueItems"):
        assert words in output
    document = json.loads(call("show", BAKERY, "--table", "shops", "--json").stdout)
    assert [table["name"] for table in document["tables"]] == ["shops"]
    assert [column["name"] for column in document["columns"]] == ["id", "city"]
    assert {
        "where": "",
        "sentence": "sql check 'SELECT max(id) FROM {object}': mustNotBe and mustNotBeBetween are not "
        "supported; use the other mustBe… keys",
    } in document["unchecked"]


def test_an_unknown_table_is_reported_with_the_nearest_one(call):
    result = call("show", BAKERY, "--table", "order")
    assert result.exit_code == 2
    assert "has no table 'order'; did you mean 'orders'?" in result.stderr


def changed_bakery(folder: Path, *pairs: tuple[str, str]) -> Path:
    text = BAKERY.read_text(encoding="utf-8")
    for old, new in pairs:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = folder / "bakery.odcs.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("pairs", "changes"),
    [
        ([("maxItems: 4", "maxItems: 3")], [("breaking", "orders.toppings")]),
        ([("  - name: shops", "  - name: stores")], [("breaking", "shops"), ("compatible", "stores")]),
        ([("tenant: north", "tenant: south")], [("note", "")]),
        ([("description: One row for each order.", "description: One order.")], [("note", "orders")]),
        ([("{name: geo, physicalType: geography}", "{name: geo, physicalType: text}")], [("breaking", "orders.geo")]),
        (
            [("{name: geo, physicalType: geography}", "{name: place}")],
            [("breaking", "orders.geo"), ("compatible", "orders.place")],
        ),
    ],
)
def test_the_changes_of_several_tables_name_the_table(call, tmp_path, pairs, changes):
    document = json.loads(call("diff", BAKERY, changed_bakery(tmp_path, *pairs), "--json").stdout)
    assert [(change["kind"], change["where"]) for change in document["changes"]] == changes
    assert document["version_needed"] == {"breaking": "3.0.0", "note": "2.4.2"}[changes[0][0]]


@pytest.mark.parametrize(("version", "code"), [("spring-2026", 3), ("summer-2026", 0), ("9.0.0", 0)])
def test_versions_that_are_no_numbers_must_differ(call, tmp_path, version, code):
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        folder.mkdir()
    old = changed_bakery(folders[0], ("version: 2.4.1", "version: spring-2026"))
    new = changed_bakery(folders[1], ("version: 2.4.1", f"version: {version}"), ("tenant: north", "tenant: south"))
    result = call("diff", old, new)
    assert result.exit_code == code
    assert ("another version than spring-2026" in result.stderr) == (code == 3)


def test_an_invalid_contract_is_reported_with_its_line(call, edited):
    result = call("show", edited(("maxItems: 64}", "maxItems: 64, maxItem: 3}")))
    assert result.exit_code == 2
    assert "did you mean 'maxItems'" in result.stderr


def test_a_contract_is_found_by_name_in_the_current_folder_and_unknown_ones_list_similar_names(
    call: Callable[..., Result], edited: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = edited(("version: ", "version: 9"))
    monkeypatch.chdir(path.parent)
    for reference in ("edited", "edited.odcs.yaml", path):
        assert json.loads(call("show", reference, "--json").stdout)["version"].startswith("9")
    assert call("show", "digits").exit_code == 0
    result = call("show", "editde")
    assert result.exit_code == 2
    assert "there is no contract 'editde'; did you mean edited?" in result.output
