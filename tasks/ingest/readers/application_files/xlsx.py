"""Workbooks of Excel (Office Open XML), read row by row by openpyxl. Every cell is read as text.

A column of a sheet has no type: numbers stand beside texts, and numbers may be stored as texts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.option_names import option_names
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.application_files.text_cells import float_text, to_text_batch
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error
from bloomery.tasks.ingest.readers.text_files.number_texts import require_number_columns
from bloomery.tasks.ingest.zip_members import ZIP_ERRORS

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.worksheet._read_only import ReadOnlyWorksheet

_BATCH_ROWS = 8_192
OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # of .xls, and of workbooks with a password
_COMPLETE = "a complete workbook (.xlsx) without a password"


class SheetRow(NamedTuple):
    """The number of a row in its sheet, from 1, and the texts of its cells from column A on; None for no value."""

    number: int
    cells: list[str | None]


class _Table(NamedTuple):
    """The columns of a table in a sheet: the index of each one's cells, its name, and the last row of its header."""

    positions: list[int]
    names: list[str]
    header_row: int


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of one sheet of each workbook. Dates are texts in ISO 8601; formulas have their last values.

    Cells with an error such as #N/A have no value, and blank rows are no rows. A row with a value in a column without a
    name is malformed.

    Raises:
        DataMissing: a file is no workbook, has a password, or has several sheets or none with the requested name.
    """
    return files.read_files(data, origin, malformed, _read_schema, _read_batches)


def list_sheets(location: FileLocation) -> list[str]:
    """Returns the names of the visible sheets that have cells."""
    with _open_workbook(location) as workbook:
        return [sheet.title for sheet in _filled_sheets(workbook)]


def read_sheet(location: FileLocation, sheet_name: str | None) -> Iterator[SheetRow]:
    """Yields the rows of a sheet that have values. `sheet_name` is None for the only sheet.

    Raises:
        DataMissing: there is no such sheet, or there are several.
    """
    with _open_workbook(location) as workbook:
        sheet = _select_sheet(workbook, sheet_name, location)
        for number, row in enumerate(sheet.iter_rows(), 1):
            cells = [_to_text(cell) for cell in row]
            if any(cells):
                yield SheetRow(number, cells)


def _read_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    table, rows = _open_table(location, data)
    require_number_columns(table.names, data, location.path)
    _require_values(table, rows, location, data)
    return pa.schema([(name, pa.string()) for name in table.names])


def _read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    table, rows = _open_table(location, data)
    order = [table.positions[table.names.index(name)] for name in schema.names]
    allowed = set(table.positions)
    while block := list(islice(rows, _BATCH_ROWS)):
        batch = []
        for row in block:
            extra = next((index for index, cell in enumerate(row.cells) if cell and index not in allowed), None)
            if extra is None:
                batch.append([row.cells[index] if index < len(row.cells) else None for index in order])
            else:
                text = ", ".join(cell or "" for cell in row.cells)
                reason = f"a value in column {_column_letter(extra)}, which has no name"
                malformed.add(location.relative, row.number, text, reason)
        yield to_text_batch(batch, schema, data)


def _open_table(location: FileLocation, data: DataSource) -> tuple[_Table, Iterator[SheetRow]]:
    """Returns the columns of the table, and the rows below its header."""
    rows = read_sheet(location, data.sheet)
    table = _find_table(rows, location, data)
    if data.columns is None:
        return table, rows
    return table, (row for row in read_sheet(location, data.sheet) if row.number > table.header_row)


def _find_table(rows: Iterator[SheetRow], location: FileLocation, data: DataSource) -> _Table:
    first = next((row for row in rows if row.number > (data.skip_lines or 0)), None)
    if first is None:
        raise unreadable_error(
            location.path, "its sheet has no rows", "a header and rows", options=("sheet", "skip_lines")
        )
    if data.columns is not None:
        start = min(index for row in chain([first], rows) for index, cell in enumerate(row.cells) if cell)
        return _Table(list(range(start, start + len(data.columns))), list(data.columns), first.number - 1)
    named = [index for index, cell in enumerate(first.cells) if cell and cell.strip()]
    return _Table(named, [(first.cells[index] or "").strip() for index in named], first.number)


def _require_values(table: _Table, rows: Iterator[SheetRow], location: FileLocation, data: DataSource) -> None:
    """Raises DataMissing where a column has formulas, but the program that wrote the file has not calculated them."""
    empty = dict(zip(table.positions, table.names, strict=True))
    for row in rows:
        for index in [index for index in empty if index < len(row.cells) and row.cells[index]]:
            del empty[index]
        if not empty:
            return
    with _open_workbook(location, has_values=False) as workbook:
        sheet = _select_sheet(workbook, data.sheet, location)
        for row in sheet.iter_rows(min_row=table.header_row + 1, values_only=True):
            for index, name in empty.items():
                if index < len(row) and isinstance(row[index], str) and row[index].startswith("="):
                    raise _workbook_error(
                        location,
                        f"column {name} has formulas without values, such as {row[index]!r}",
                        "the values of its formulas",
                        "open it in Excel or LibreOffice, which calculate the values, and save it",
                    )


@contextmanager
def _open_workbook(location: FileLocation, *, has_values: bool = True) -> Iterator[Workbook]:
    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    with location.open_file() as file:
        start = file.read(len(OLE_MAGIC))
        if start == OLE_MAGIC:
            raise _workbook_error(
                location,
                "it has a password, or is a workbook of Excel 97 to 2003 (.xls)",
                _COMPLETE,
                "open it in Excel or LibreOffice, and save it as .xlsx without a password",
            )
        file.seek(0)
        try:
            workbook = load_workbook(file, read_only=True, data_only=has_values)
        except (*ZIP_ERRORS, InvalidFileException, KeyError, ValueError, TypeError, SyntaxError) as failure:
            raise unreadable_error(location.path, failure, _COMPLETE, "xlsx") from failure
        try:
            yield workbook
        except (*ZIP_ERRORS, KeyError, SyntaxError) as failure:
            raise unreadable_error(location.path, failure, _COMPLETE, "xlsx") from failure
        finally:
            workbook.close()


def _select_sheet(workbook: Workbook, name: str | None, location: FileLocation) -> ReadOnlyWorksheet:
    sheets = workbook.worksheets if name is not None else _filled_sheets(workbook)
    matches = [sheet for sheet in sheets if name in (None, sheet.title)]
    if len(matches) == 1:
        sheet = matches[0]
        sheet.reset_dimensions()  # some programs write other ones than the sheet has
        return sheet
    titles = ", ".join(repr(sheet.title) for sheet in sheets)
    if name is not None:
        problem = f"it has no sheet {name!r}, but {titles or 'none with cells'}"
    else:
        problem = f"it has the sheets {titles}" if titles else "none of its sheets has cells"
    remedy = f"name one by {option_names('sheet')}" if titles else "choose another file"
    raise _workbook_error(location, problem, "one sheet with cells, or the name of one", remedy)


def _workbook_error(location: FileLocation, problem: str, required: str, remedy: str) -> DataMissing:
    return DataMissing(
        f"{location.path} cannot be read as xlsx: {problem}", required=required, where=location.path, remedy=remedy
    )


def _filled_sheets(workbook: Workbook) -> list[ReadOnlyWorksheet]:
    sheets = []
    for sheet in workbook.worksheets:
        if sheet.sheet_state == "visible":
            sheet.reset_dimensions()
            if any(value is not None for row in sheet.iter_rows(values_only=True) for value in row):
                sheets.append(sheet)
    return sheets


def _to_text(cell: Any) -> str | None:
    """Returns the value of a cell as CSV would have it; None where it is empty or an error."""
    value = cell.value
    if value is None or cell.data_type == "e":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return float_text(value)
    if isinstance(value, dt.datetime):
        return _moment_text(value, str(cell.number_format))
    if isinstance(value, dt.timedelta):
        return repr(value.total_seconds())
    if isinstance(value, dt.time):
        return str(value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6)
    return str(value)


def _moment_text(moment: dt.datetime, number_format: str) -> str:
    """Returns a date where the cell shows one, else date and time."""
    from openpyxl.styles.numbers import is_datetime

    is_date = is_datetime(number_format) == "date" and moment.time() == dt.time()
    return moment.date().isoformat() if is_date else moment.isoformat(" ")


def _column_letter(index: int) -> str:
    from openpyxl.utils import get_column_letter

    return str(get_column_letter(index + 1))
