"""Finds the header of a delimited text, and the options that read the rows below where they differ from it in width."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.scaffolding.profiling.column_names import unused_name

NUMBER_OR_DATE = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?|\d{4}-\d{2}-\d{2}.*")
MAX_HEADER_ROW = 100  # rows in front of the header
_USUAL_SHARE = 0.9  # of the rows that show how rows are written


class Row(NamedTuple):
    """The cells of a row without white space around them, and the numbers of its first and last line, from 1."""

    cells: list[str]
    first_line: int
    last_line: int


class CsvHeader(NamedTuple):
    """The first row that is read, whether it has the names, and the rows below."""

    is_header: bool
    reason: str
    cells: list[str]
    rows: list[list[str]]
    first_line: int
    last_line: int

    @property
    def width(self) -> int:
        """The usual number of cells of a row."""
        widths = Counter(len(row) for row in (self.rows if self.is_header and self.rows else [self.cells, *self.rows]))
        return widths.most_common(1)[0][0]


class FittedHeader(NamedTuple):
    """The names of the columns and the options that read them. `replaces_header` where the header line is skipped."""

    names: tuple[str, ...]
    options: dict[str, object]
    notes: dict[str, str]
    replaces_header: bool = False
    last_line: int = 0


def locate_label(rows: Sequence[Row], label: str) -> int | None:
    """Returns the index of the first row with the cell `label`, rather one of the usual width; or None."""
    indices = [index for index, row in enumerate(rows[:MAX_HEADER_ROW]) if label in row.cells]
    if not indices:
        return None
    usual_width = Counter(len(row.cells) for row in rows).most_common(1)[0][0]
    return next((index for index in indices if len(rows[index].cells) == usual_width), indices[0])


def find_header(rows: Sequence[Row], label: str, known: Mapping[str, Any]) -> CsvHeader:
    """Returns the row that has the label; else the first row of the usual width, and whether it is a header."""
    columns = known.get("columns")
    index = locate_label(rows, label)
    if index is not None and columns is None and known.get("header") is not False:
        return _header_at(rows, index, True, f"a row contains the name {label}" if index else _first_row(label))
    usual_width = Counter(len(row.cells) for row in rows).most_common(1)[0][0]
    num_filled = [sum(bool(cell) for cell in row.cells) for row in rows]
    usual_filled = Counter(num_filled).most_common(1)[0][0]
    index = next(
        (
            index
            for index, row in enumerate(rows[:MAX_HEADER_ROW])
            if abs(len(row.cells) - usual_width) <= 1 and num_filled[index] > min(usual_filled, usual_width) / 2
        ),
        0,
    )
    if known.get("header") is False:
        return _header_at(rows, index, False, "as requested")
    if known.get("header"):
        return _header_at(rows, index, True, "as requested")
    is_header, reason = _infer_header([row.cells for row in rows[index:]], label, columns)
    return _header_at(rows, index, is_header, reason)


def _first_row(label: str) -> str:
    return f"the first row contains the name {label}"


def _header_at(rows: Sequence[Row], index: int, is_header: bool, reason: str) -> CsvHeader:
    row = rows[index]
    return CsvHeader(
        is_header, reason, row.cells, [row.cells for row in rows[index + 1 :]], row.first_line, row.last_line
    )


def _infer_header(rows: list[list[str]], label: str, columns: Sequence[str] | None) -> tuple[bool, str]:
    first_row, body = rows[0], rows[1:200]
    if columns is None and re.fullmatch(r"column_\d+", label):
        return False, "--label names a numbered column, so there is no header"
    if columns is not None and [name.strip() for name in columns] == first_row:
        return True, "the first row has the names of --columns and is skipped"
    if any(NUMBER_OR_DATE.fullmatch(cell) for cell in first_row):
        return False, "the first row has numbers or dates"
    cells_below = [[row[index] for row in body if index < len(row)] for index in range(len(first_row))]
    if any(sum(NUMBER_OR_DATE.fullmatch(cell) is not None for cell in cells) > len(cells) / 2 for cells in cells_below):
        return True, "the first row has names above columns of numbers"
    is_new = all(cell and cell not in cells for cell, cells in zip(first_row, cells_below, strict=True))
    if is_new and columns is None:
        return True, "the first row has texts that occur in no other row"
    return False, "the first row looks like the other rows"


def fit_header(header: CsvHeader, known: Mapping[str, Any], location: FileLocation) -> FittedHeader:
    """Returns the names of the columns, and the options that read rows which are wider or narrower than the header.

    Raises:
        DataMissing: the names that are known do not fit the rows.
    """
    notes = {"header": header.reason}
    ends_with_delimiter = known.get("trailing_delimiter", header.width > 1 and _are_last_cells_empty(header))
    columns = known.get("columns")
    if columns is not None:
        trailing = {"trailing_delimiter": True} if ends_with_delimiter and header.width == len(columns) + 1 else {}
        _require_width(location, columns, header.width - len(trailing))
        options = {"header": False, "columns": list(columns), **trailing}
        notes |= {"columns": "as requested"}
        return FittedHeader(tuple(columns), options, notes, header.is_header, header.last_line)
    if not header.is_header:
        last_cells = {row[-1] for row in [header.cells, *header.rows] if len(row) == header.width}
        ends_with_delimiter = known.get("trailing_delimiter", header.width > 1 and last_cells == {""})
        width = header.width - bool(ends_with_delimiter)
        names = tuple(f"column_{number}" for number in range(1, width + 1))
        trailing = {"trailing_delimiter": True} if ends_with_delimiter else {}
        return FittedHeader(names, {"header": False, "columns": list(names), **trailing}, notes)
    names, width = tuple(header.cells), header.width
    if ends_with_delimiter and names[-1] == "" and width == len(names):
        notes["trailing_delimiter"] = "the header and each row end with a delimiter"
        return _complete(FittedHeader(names[:-1], {"trailing_delimiter": True}, notes, last_line=header.last_line))
    if ends_with_delimiter and width == len(names) + 1:
        notes["trailing_delimiter"] = "each row ends with a delimiter, and the header does not"
        return _complete(FittedHeader(names, {"trailing_delimiter": True}, notes, last_line=header.last_line))
    if names[-1] == "" and width == len(names) - 1:
        notes["columns"] = "the header ends with a delimiter, and the rows do not"
        return _replace(names[:-1], notes, header)
    if width == len(names) + 1:
        notes["columns"] = "rows have one cell more than the header, so the first cell is the name of the row, as in R"
        return _replace((unused_name("row_name", names), *names), notes, header)
    return _complete(FittedHeader(names, {}, notes, last_line=header.last_line))


def _are_last_cells_empty(header: CsvHeader) -> bool:
    """Whether nearly all rows have an empty last cell, so that none is a column."""
    rows = header.rows if header.is_header else [header.cells, *header.rows]
    last_cells = [row[-1] for row in rows if len(row) == header.width]
    return bool(last_cells) and sum(cell == "" for cell in last_cells) > _USUAL_SHARE * len(last_cells)


def _replace(names: Sequence[str], notes: dict[str, str], header: CsvHeader) -> FittedHeader:
    complete = _complete_names(names)
    options: dict[str, object] = {"header": False, "columns": list(complete)}
    return FittedHeader(complete, options, notes, True, header.last_line)


def _complete(fitted: FittedHeader) -> FittedHeader:
    """Returns unique names for all columns, in place of the header where it has others."""
    names = fitted.names
    if all(names) and len(set(names)) == len(names):
        return fitted
    names = _complete_names(names)
    options = {"header": False, "columns": list(names), **fitted.options}
    notes = {**fitted.notes, "columns": "the header has a repeated or an empty name, so these names replace it"}
    return FittedHeader(names, options, notes, True, fitted.last_line)


def _complete_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns a unique name for each column."""
    unique_names: list[str] = []
    for number, name in enumerate(names, 1):
        used_names = unique_names if name else [*unique_names, *names[number:]]
        unique_names.append(unused_name(name or f"column_{number}", used_names))
    return tuple(unique_names)


def _require_width(location: FileLocation, names: Sequence[str], width: int) -> None:
    if len(names) != width:
        raise DataMissing(
            f"there are {len(names)} names, and the rows have {width} cells",
            required="a name for each cell, in the order of the cells",
            where=f"--columns, for {location.path}",
            remedy="correct --columns, or set --delimiter",
        )
