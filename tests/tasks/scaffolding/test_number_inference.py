"""The notation of numbers is found in all rows, column by column, and numbers are rewritten by it."""

from pathlib import Path
from typing import Any

import pytest

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.scaffolding.profiling.profiler import SourceProfile, profile_source

NUM = 60


def profile(cells: dict[str, list[str]], folder: Path, **options: Any) -> SourceProfile:
    delimiter = options.setdefault("delimiter", ",")
    rows = zip(*cells.values(), strict=True)
    text = [delimiter.join(cells), *(delimiter.join(f'"{cell}"' for cell in row) for row in rows)]
    (folder / "rows.csv").write_text("\n".join(text) + "\n", encoding="utf-8")
    return profile_source(DataSource(source=str(folder / "rows.csv"), strip=True, **options), folder)


def column_of(pattern: str) -> list[str]:
    """Returns texts with whole numbers from 101 on in place of {n}, the last two digits of {d}, and groups of {t}."""
    return [
        pattern.format(n=101 + number, d=f"{(number * 37) % 100:02}", t=f"{(number * 91 + 7) % 1000:03}")
        for number in range(NUM)
    ]


COMMAS, POINTS, GROUPS = column_of("{n},{d}"), column_of("{n}.{d}"), column_of("{n},{t}")
# By name: columns, delimiter, inferred options, and the smallest number of each numeric column.
CASES: dict[str, tuple[dict[str, list[str]], str, dict[str, Any], dict[str, float]]] = {
    "plain": ({"a": POINTS, "b": column_of("{n}")}, ",", {}, {"a": 101, "b": 101}),
    "decimal commas": ({"a": COMMAS}, ";", {"decimal": ",", "numbers": ("a",)}, {"a": 101}),
    "decimal commas of three digits": (
        {"a": [*GROUPS[:-1], "0,066"], "b": GROUPS},
        ";",
        {"decimal": ",", "numbers": ("a", "b")},
        {"a": 0.066, "b": 101.007},
    ),
    "thousands": ({"a": GROUPS, "b": POINTS}, ",", {"thousands": ",", "numbers": ("a",)}, {"a": 101_007, "b": 101}),
    "thousands beside whole numbers": ({"a": GROUPS}, "|", {"thousands": ",", "numbers": ("a",)}, {"a": 101_007}),
    "millions": ({"a": column_of("1,{n},{t}")}, ";", {"thousands": ",", "numbers": ("a",)}, {"a": 1_101_007}),
    "the German notation": (
        {"a": column_of("1.{n},{d}"), "b": column_of("{n}.{t}")},
        ";",
        {"decimal": ",", "thousands": ".", "numbers": ("a", "b")},
        {"a": 1101, "b": 101_007},
    ),
    "thousands behind points": (
        {"a": [*column_of("{n}.{t}")[:-3], "7", "85", "999"], "b": column_of("{n}.{t}")},
        ",",
        {"decimal": ",", "thousands": ".", "numbers": ("a", "b")},
        {"a": 7, "b": 101_007},
    ),
    "the French notation": (
        {"a": column_of("1\u202f{n},{d}")},
        ";",
        {"decimal": ",", "thousands": " ", "numbers": ("a",)},
        {"a": 1101},
    ),
    "the Swiss notation": ({"a": column_of("1’{n}.{d}")}, ",", {"thousands": "'", "numbers": ("a",)}, {"a": 1101}),
    "percent": ({"a": column_of("{n}.5%")}, ",", {"units": ("%",), "numbers": ("a",)}, {"a": 101.5}),
    "currencies": (
        {"a": column_of("${n}"), "b": column_of("{n} €"), "c": column_of("USD {n}")},
        ",",
        {"units": ("$", "€", "USD"), "numbers": ("a", "b", "c")},
        {"a": 101, "b": 101, "c": 101},
    ),
    "all at once": (
        {"a": column_of("$1,{n}.{d}"), "b": POINTS},
        ",",
        {"thousands": ",", "units": ("$",), "numbers": ("a",)},
        {"a": 1101, "b": 101},
    ),
    "negative numbers in parentheses": (
        {"a": column_of("({n}.5)")},
        ",",
        {"decimal": ".", "numbers": ("a",)},
        {"a": -160.5},
    ),
    "decimal commas beside points": (
        {"a": COMMAS, "b": POINTS, "c": POINTS},
        ",",
        {"decimal": ",", "numbers": ("a",)},
        {"a": 101, "b": 101},
    ),
    "two currencies in one column": ({"a": [*column_of("${n}")[:30], *column_of("€{n}")[30:]]}, ",", {}, {}),
    "percents beside fractions": ({"a": [*column_of("{n}%")[:30], *column_of("0.{d}")[30:]]}, ",", {}, {}),
    "codes": ({"a": column_of("0{n},5"), "b": column_of("{n}-{t}"), "c": column_of("{n}.{n}.{t}.1")}, ",", {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_notation_of_numbers_is_inferred(case: str, home: Path, tmp_path: Path) -> None:
    cells, delimiter, options, minima = CASES[case]
    result = profile(cells, tmp_path, delimiter=delimiter)
    assert result.numbers.options == options
    assert set(result.numbers.notes) == set(options)
    numeric = {column.name: column for column in result.columns if column.logical_type in ("integer", "number")}
    assert {name: numeric[name].minimum for name in minima} == minima
    assert not {"a", "b", "c"} & numeric.keys() - minima.keys() or "c" in cells
    assert all(column.num_invalid == 0 for column in numeric.values())


def test_what_the_user_says_is_kept(home: Path, tmp_path: Path) -> None:
    ambiguous = {"a": GROUPS, "b": column_of("{n}")}
    assert profile(ambiguous, tmp_path).numbers.options == {"thousands": ",", "numbers": ("a",)}
    assert "set `decimal`" in profile(ambiguous, tmp_path).numbers.notes["thousands"]
    as_decimal = profile(ambiguous, tmp_path, decimal=",")
    assert as_decimal.numbers.options == {"decimal": ",", "numbers": ("a",)}
    assert as_decimal.columns[0].maximum == 160.376
    named = profile({"a": column_of("{n} kg"), "b": column_of("{n} kg")}, tmp_path, units=["kg"], numbers=["a"])
    assert [column.logical_type for column in named.columns] == ["integer", "string"]


@pytest.mark.parametrize(
    ("cells", "kind", "num_invalid"),
    [
        (["abc"], "integer", 1),
        (["1,234"], "integer", 0),
        (["inf", "-inf", "Infinity"] * 2, "integer", 6),
        (["1.5"], "number", 0),
        (["1.5", "abc"], "number", 1),
        (["x", "y", "z"], "string", 0),
    ],
)
def test_few_other_texts_leave_a_column_numeric(
    cells: list[str], kind: str, num_invalid: int, home: Path, tmp_path: Path
) -> None:
    texts = [*(str(number) for number in range(240 - len(cells))), *cells]
    column = profile({"a": texts}, tmp_path).columns[0]
    assert (column.logical_type, column.num_invalid) == (kind, num_invalid)
    assert (not num_invalid) or cells[-1] in column.invalid_examples


def test_a_text_that_repeats_among_few_numbers_is_a_category(home: Path, tmp_path: Path) -> None:
    texts = [*(str(number % 9) for number in range(398)), "K", "K"]
    assert profile({"grade": texts}, tmp_path).columns[0].logical_type == "string"
    truths = [*("true" for _ in range(398)), "maybe", "perhaps"]
    assert profile({"ok": truths}, tmp_path).columns[0].logical_type == "string"
