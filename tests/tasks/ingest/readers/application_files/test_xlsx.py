"""Workbooks of Excel: one sheet becomes rows of texts."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.stage import ingest, locate_source


def write_workbook(path: Path, *sheets: tuple[str, list[list[Any]]]) -> str:
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for title, rows in sheets:
        sheet = workbook.create_sheet(title)
        for row in rows:
            sheet.append(row)
    workbook.save(path)
    return str(path)


def test_cells_become_the_texts_that_csv_would_have(ingest_rows, tmp_path: Path) -> None:
    row = [1, 2.5, 3.0, True, "é ", dt.date(2024, 2, 29), dt.datetime(2024, 2, 29, 13, 30), "#N/A", None]
    names = ["whole", "fraction", "float", "flag", "text", "day", "moment", "error", "empty"]
    source = write_workbook(tmp_path / "rows.xlsx", ("Rows", [names, row]))
    result = ingest_rows(source=source)
    assert result.record.is_text
    assert result.rows == [
        {
            "whole": "1",
            "fraction": "2.5",
            "float": "3",
            "flag": "true",
            "text": "é ",
            "day": "2024-02-29",
            "moment": "2024-02-29 13:30:00",
            "error": None,
            "empty": None,
        }
    ]


def test_times_of_day_and_durations_become_seconds(ingest_rows, tmp_path: Path) -> None:
    rows = [["time", "duration"], [dt.time(0, 1, 30), dt.timedelta(hours=30)]]
    source = write_workbook(tmp_path / "rows.xlsx", ("Rows", rows))
    assert ingest_rows(source=source).rows == [{"time": "90.0", "duration": "108000.0"}]


def test_a_table_may_begin_anywhere_and_blank_rows_and_columns_are_none_of_it(ingest_rows, tmp_path: Path) -> None:
    rows = [[], ["", "A title"], [], [None, "a", None, "b"], [None, 1, None, 2], [], [None, 3], [], [None, " "]]
    source = write_workbook(tmp_path / "rows.xlsx", ("Rows", rows))
    result = ingest_rows(source=source, skip_lines=3, strip=True)
    assert result.rows == [{"a": "1", "b": "2"}, {"a": "3", "b": None}, {"a": None, "b": None}]


def test_a_value_in_a_column_without_a_name_makes_a_row_malformed(ingest_rows, tmp_path: Path) -> None:
    source = write_workbook(tmp_path / "rows.xlsx", ("Rows", [["a", "b"], [1, 2], [3, 4, "note"]]))
    result = ingest_rows(source=source)
    assert result.rows == [{"a": "1", "b": "2"}]
    assert result.malformed == [("rows.xlsx", 3, "3, 4, note", "a value in column C, which has no name")]


def test_options_name_the_sheet_the_columns_and_the_numbers(ingest_rows, tmp_path: Path) -> None:
    sheets = ("Notes", [["x"]]), ("Rows", [["1,5", "?"], ["2,5", "b"]])
    source = write_workbook(tmp_path / "rows.xlsx", *sheets)
    options = {"sheet": "Rows", "header": False, "columns": ["a", "b"], "missing": ["?"], "decimal": ","}
    assert ingest_rows(source=source, **options).rows == [{"a": "1.5", "b": None}, {"a": "2.5", "b": "b"}]


def test_columns_begin_with_the_first_one_that_has_a_value(ingest_rows, tmp_path: Path) -> None:
    rows = [[None, None, "x"], [None, None, 1], [None, 0, 2]]
    source = write_workbook(tmp_path / "rows.xlsx", ("Rows", rows))
    options = {"header": False, "columns": ["index", "x"], "skip_lines": 1}
    assert ingest_rows(source=source, **options).rows == [{"index": None, "x": "1"}, {"index": "0", "x": "2"}]


def test_workbooks_of_a_folder_are_read_one_after_the_other(ingest_rows, tmp_path: Path) -> None:
    for number in (2, 1):
        write_workbook(tmp_path / f"{number}.xlsx", ("Rows", [["a"], [number]]))
    assert ingest_rows(source=str(tmp_path), format="xlsx").rows == [{"a": "1"}, {"a": "2"}]


def test_hidden_sheets_are_no_alternatives(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    write_workbook(path, ("Rows", [["a"], [1]]), ("Lists", [["x"]]), ("Empty", []))
    workbook = openpyxl.load_workbook(path)
    workbook["Lists"].sheet_state = "hidden"
    workbook.save(path)
    assert ingest_rows(source=str(path)).rows == [{"a": "1"}]


FAULTS: dict[str, tuple[list[tuple[str, list[list[Any]]]], dict[str, Any], str]] = {
    "several sheets": (
        [("A", [["x"]]), ("B", [["y"]])],
        {},
        "it has the sheets 'A', 'B'.*\n.*\n.*\n.*name one by `sheet`",
    ),
    "another sheet": ([("A", [["x"]])], {"sheet": "C"}, "it has no sheet 'C', but 'A'"),
    "no cells": ([("A", [])], {}, "none of its sheets has cells"),
    "too many lines skipped": ([("A", [["x"]])], {"skip_lines": 9}, "its sheet has no rows"),
    "formulas": ([("A", [["x", "y"], [1, "=A2+1"]])], {}, "column y has formulas without values, such as '=A2\\+1'"),
    "repeated names": ([("A", [["x", "x"], [1, 2]])], {}, "two columns have the name x"),
    "no such numbers": ([("A", [["x"], [1]])], {"decimal": ",", "numbers": ["y"]}, "there is no column y"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_workbook_without_one_clear_table_is_refused(fault: str, home: Path, tmp_path: Path) -> None:
    sheets, options, message = FAULTS[fault]
    source = write_workbook(tmp_path / "rows.xlsx", *sheets)
    with pytest.raises(DataMissing, match=message):
        ingest(locate_source(DataSource(source=source, **options)))


def test_a_file_that_is_no_open_workbook_is_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500))
    with pytest.raises(DataMissing, match="it has a password, or is a workbook of Excel 97 to 2003"):
        ingest(locate_source(DataSource(source=str(path))))
    write_workbook(path, ("A", [["x"], [1]]))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataMissing, match="cannot be read as xlsx: File is not a zip file"):
        ingest(locate_source(DataSource(source=str(path))))
