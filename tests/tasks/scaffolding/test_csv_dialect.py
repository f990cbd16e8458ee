"""Dialects that `bloomery init` finds: each is checked by the rows that the reader returns with it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.readers.base import MalformedWriter
from bloomery.tasks.ingest.readers.text_files import delimited
from bloomery.tasks.scaffolding.source_options.csv_dialect import CsvDialect, infer_dialect


def read_with_inferred_dialect(
    text: str, label: str, folder: Path, requested: dict[str, Any] | None = None
) -> tuple[CsvDialect, list[dict[str, str]], int]:
    """Returns the dialect, the rows read with it, and the number of malformed lines."""
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8", newline="")
    dialect = infer_dialect(locations.find_files(DataSource(source=str(path)), str(path)), label, requested)
    data = DataSource.model_validate({"source": str(path), **dialect.options})
    with MalformedWriter(folder / "malformed.parquet") as malformed:
        rows = [
            row for batch in delimited.read(data, data.source_files[0], malformed).batches for row in batch.to_pylist()
        ]
    assert tuple(rows[0]) == dialect.names
    return dialect, rows, malformed.num_lines


def lines(pattern: str, num: int = 40) -> str:
    """Returns lines with the number n, and a label of two classes, y, in place of {n} and {y}."""
    return "".join(pattern.format(n=number, y="yes" if number % 3 else "no") + "\n" for number in range(num))


# By name: text, options that must be found, the first row.
CASES: dict[str, tuple[str, dict[str, object], dict[str, str | None]]] = {
    "semicolons around decimal commas": (
        "a;b;y\n" + lines("{n},5;-0,2{n};{y}"),
        {"delimiter": ";"},
        {"a": "0,5", "b": "-0,20", "y": "no"},
    ),
    "pipes around commas": (
        "note|a|y\n" + lines("Smith, J {n}|{n},5|{y}"),
        {"delimiter": "|"},
        {"note": "Smith, J 0", "a": "0,5", "y": "no"},
    ),
    "tabs around commas": (
        "note\ta\ty\n" + lines("Smith, J {n}\t{n},5\t{y}"),
        {"delimiter": "\t"},
        {"note": "Smith, J 0", "a": "0,5", "y": "no"},
    ),
    "long texts with the label's name as a word": (
        "n,text,y\n" + lines('{n},"' + "any y or n, " * 800 + '",{y}'),
        {"delimiter": ","},
        {"n": "0", "text": ("any y or n, " * 800).strip(), "y": "no"},
    ),
    "a line that names the separator": (
        "sep=;\na;y\n" + lines("{n},5;{y}"),
        {"delimiter": ";", "skip_lines": 1},
        {"a": "0,5", "y": "no"},
    ),
    "a separator line and a title": (
        "sep=;\nReport\na;y\n" + lines("{n},5;{y}"),
        {"delimiter": ";", "skip_lines": 2},
        {"a": "0,5", "y": "no"},
    ),
    "a title with empty cells": (
        "Sales report,,\n,,\na,b,y\n" + lines("{n},x,{y}"),
        {"skip_lines": 2},
        {"a": "0", "b": "x", "y": "no"},
    ),
    "a title of one cell and a blank line": (
        "Sales, by month\n\na,b,y\n" + lines("{n},x,{y}"),
        {"skip_lines": 2},
        {"a": "0", "b": "x", "y": "no"},
    ),
    "a title with the name of the label": (
        "target,y\na,b,y\n" + lines("{n},x,{y}"),
        {"skip_lines": 1},
        {"a": "0", "b": "x", "y": "no"},
    ),
    "a title with a stray quote": (
        '"Report of Q1, 2024\na,b,y\n' + lines("{n},x,{y}"),
        {"skip_lines": 1},
        {"a": "0", "b": "x", "y": "no"},
    ),
    "comments in front and between": (
        "# made by a tool\n# y, a\n\na,y\n" + lines("{n},{y}", 3) + "# pause\n" + lines("{n},{y}"),
        {"comment": "#"},
        {"a": "0", "y": "no"},
    ),
    "comments with the sign of data": (
        "# made by a tool\na,y\n" + lines("#{n},{y}"),
        {"skip_lines": 1},
        {"a": "#0", "y": "no"},
    ),
    "a header that looks like a comment": ("#a,y\n" + lines("{n},{y}"), {}, {"#a": "0", "y": "no"}),
    "delimiters behind rows": (
        "a,b,y\n" + lines("{n},x,{y},"),
        {"trailing_delimiter": True},
        {"a": "0", "b": "x", "y": "no"},
    ),
    "delimiters behind all lines": (
        "a,b,y,\n" + lines("{n},x,{y},"),
        {"trailing_delimiter": True},
        {"a": "0", "b": "x", "y": "no"},
    ),
    "a delimiter behind the header": (
        "a,b,y,\n" + lines("{n},x,{y}"),
        {"columns": ["a", "b", "y"], "skip_lines": 1},
        {"a": "0", "b": "x", "y": "no"},
    ),
    "row names of R": (
        '"a" "y"\n' + lines('"r{n}" {n} "{y}"'),
        {"delimiter": " ", "columns": ["row_name", "a", "y"]},
        {"row_name": "r0", "a": "0", "y": "no"},
    ),
    "row names behind a title": (
        "Export\n" + '"a","y"\n' + lines('"r{n}",{n},"{y}"'),
        {"columns": ["row_name", "a", "y"], "skip_lines": 2},
        {"row_name": "r0", "a": "0", "y": "no"},
    ),
    "single quotes": (
        "note,a,y\n" + lines("'Smith, J {n}',{n},{y}"),
        {"quote": "'"},
        {"note": "Smith, J 0", "a": "0", "y": "no"},
    ),
    "single quotes without commas": ("note,y\n" + lines("'J {n}',{y}"), {"quote": "'"}, {"note": "J 0", "y": "no"}),
    "doubled single quotes": (
        "note,y\n" + lines("'it''s, J {n}',{y}"),
        {"quote": "'"},
        {"note": "it's, J 0", "y": "no"},
    ),
    "apostrophes": ("note,y\n" + lines("it's O'{n}',{y}"), {}, {"note": "it's O'0'", "y": "no"}),
    "backslash escapes": (
        "note,a,y\n" + lines(r'"says \"hi, {n}\" to all",{n},{y}'),
        {"escape": "\\"},
        {"note": 'says "hi, 0" to all', "a": "0", "y": "no"},
    ),
    "backslash escapes without commas": (
        "note,y\n" + lines(r'"says \"hi {n}\"",{y}'),
        {"escape": "\\"},
        {"note": 'says "hi 0"', "y": "no"},
    ),
    "paths that end with a backslash": ("path,y\n" + lines('"C:\\{n}\\",{y}'), {}, {"path": "C:\\0\\", "y": "no"}),
    "spaces in front of quotes": (
        "note, a, y\n" + lines('{n}, "Smith, J {n}", {y}'),
        {"skip_initial_space": True},
        {"note": "0", "a": "Smith, J 0", "y": "no"},
    ),
    "doubled quotes": ("note,y\n" + lines('"a ""b, {n}""",{y}'), {}, {"note": 'a "b, 0"', "y": "no"}),
    "carriage returns alone": (
        "a;y\r" + lines("{n};{y}").replace("\n", "\r"),
        {"delimiter": ";"},
        {"a": "0", "y": "no"},
    ),
    "aligned columns": (
        " a   note       y\n" + lines('{n:4d}  "Smith  J" \t{y}  '),
        {"delimiter": " ", "skip_initial_space": True},
        {"a": "0", "note": "Smith  J", "y": "no"},
    ),
    "carriage returns": ("a;y\r\n" + lines("{n};{y}\r"), {"delimiter": ";"}, {"a": "0", "y": "no"}),
    "texts with lines": ("note,y\n" + lines('"one,\ntwo {n}",{y}'), {}, {"note": "one,\ntwo 0", "y": "no"}),
}
NOT_INFERRED = {"skip_lines", "comment", "trailing_delimiter", "quote", "escape", "skip_initial_space", "columns"}


@pytest.mark.parametrize("case", CASES)
def test_a_dialect_is_found(case: str, home: Path, tmp_path: Path) -> None:
    text, options, first_row = CASES[case]
    dialect, rows, num_malformed = read_with_inferred_dialect(text, "y", tmp_path)
    assert options.items() <= dialect.options.items()
    assert not (dialect.options.keys() & NOT_INFERRED) - {*options, "header", "columns", "skip_lines"}
    assert set(options) <= dialect.notes.keys() | {"columns", "skip_lines"}
    assert rows[0] == first_row
    assert (len(rows), num_malformed) == (43 if "between" in case else 40, 0)


def test_a_stray_quote_leaves_the_dialect_and_the_other_rows(home: Path, tmp_path: Path) -> None:
    text = "note,a,y\n" + lines("fine {n},{n},{y}", 5) + '"broken,1,no\n' + lines("fine {n},{n},{y}")
    dialect, rows, num_malformed = read_with_inferred_dialect(text, "y", tmp_path)
    assert dialect.options == {"encoding": "utf-8", "delimiter": ",", "strip": True}
    assert (len(rows), num_malformed) == (45, 1)


def test_requested_options_are_kept_and_the_others_inferred(home: Path, tmp_path: Path) -> None:
    text = "y;a\n;\n#y|a\n" + lines("{y}|{n}")
    requested = {"skip_lines": 2, "delimiter": "|", "comment": "%", "encoding": "latin-1"}
    dialect, rows, _ = read_with_inferred_dialect(text, "#y", tmp_path, requested)
    assert requested.items() <= dialect.options.items()
    assert rows[0] == {"#y": "no", "a": "0"}
    dialect, rows, _ = read_with_inferred_dialect(lines("{n},{y},"), "b", tmp_path, {"columns": ["a", "b"]})
    assert dialect.options["trailing_delimiter"] is True
    assert rows[0] == {"a": "0", "b": "no"}
    dialect, rows, _ = read_with_inferred_dialect(lines("x{n},{y}"), "column_2", tmp_path, {"header": False})
    assert (dialect.names, len(rows)) == (("column_1", "column_2"), 40)
    dialect, rows, _ = read_with_inferred_dialect("a,y\n" + lines('"{n},{y}'), "y", tmp_path, {"quote": ""})
    assert (dialect.options["quote"], rows[1]["a"]) == ("", '"1')


def test_a_label_that_is_not_there_still_leaves_the_header(home: Path, tmp_path: Path) -> None:
    text = "Sales report,,\n,,\na,b,y\n" + lines("{n},x,{y}")
    dialect, rows, _ = read_with_inferred_dialect(text, "yy", tmp_path)
    assert (dialect.names, len(rows)) == (("a", "b", "y"), 40)


def test_decimal_commas_without_a_header_are_no_delimiters(home: Path, tmp_path: Path) -> None:
    dialect, rows, _ = read_with_inferred_dialect(lines("{n},5;-0,2{n};{y}"), "column_3", tmp_path)
    assert (dialect.options["delimiter"], rows[1]["column_2"]) == (";", "-0,21")


def test_the_label_tells_the_encoding(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("цена;класс\n" + lines("{n};{y}").replace("yes", "да"), encoding="cp1251")
    dialect = infer_dialect(locations.find_files(DataSource(source=str(path)), str(path)), "класс")
    assert (dialect.options["encoding"], dialect.names) == ("cp1251", ("цена", "класс"))


def test_columns_that_do_not_fit_name_the_option(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="3 names, and the rows have 2 cells") as caught:
        read_with_inferred_dialect(lines("{n},{y}"), "c", tmp_path, {"columns": ["a", "b", "c"]})
    assert "--columns" in caught.value.remedy


def test_the_types_of_a_batch_are_texts(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,y,\n1,2,\n")
    data = DataSource(source=str(path), trailing_delimiter=True)
    with MalformedWriter(tmp_path / "malformed.parquet") as malformed:
        assert delimited.read(data, data.source_files[0], malformed).schema == pa.schema(
            [("a", pa.string()), ("y", pa.string())]
        )
