"""`bloomery contract`: output, files and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


def test_an_invalid_contract_is_reported_with_its_line(call, edited):
    result = call("show", edited(("maxItems: 64}", "maxItems: 64, maxItem: 3}")))
    assert result.exit_code == 2
    assert "did you mean 'maxItems'" in result.stderr
