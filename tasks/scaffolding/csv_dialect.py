"""Infers how a delimited text is written: encoding, delimiter, quote and header.

DuckDB's sniffer finds delimiter and quote. Decision 12 says where it is passed over, and why the header is found here.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.scaffolding.column_names import unused_name

SAMPLE_BYTES = 65_536
_CHUNK_BYTES = 1 << 20
_DELIMITERS = (",", ";", "\t", "|", ":", " ")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NOT_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # bytes that cp1252 leaves undefined
_NUMBER_OR_DATE = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?|\d{4}-\d{2}-\d{2}.*")


class CsvDialect(NamedTuple):
    """The names of the columns, and the options of `data` that read them; `notes` give the reason of an option."""

    names: tuple[str, ...]
    options: dict[str, object]
    notes: dict[str, str]


class _Separators(NamedTuple):
    """Delimiter and quote, and why the delimiter was chosen."""

    delimiter: str
    quote: str
    reason: str


def infer_dialect(
    locations: Sequence[FileLocation], label: str, delimiter: str | None = None, columns: Sequence[str] | None = None
) -> CsvDialect:
    """Returns the dialect of files that are written alike. A first row that contains `label` is the header.

    Raises:
        DataMissing: a file is empty or no text.
    """
    encoding, encoding_reason = _infer_encoding(locations)
    sample = _read_sample(locations[0], encoding)
    separators = _Separators(delimiter, '"', "as requested") if delimiter else _infer_separators(sample, label)
    rows = _parse(sample, separators)
    if not rows:
        raise _not_csv_error(locations[0], "it has no rows")
    has_header, header_reason = _infer_header(rows, label, columns)
    options: dict[str, object] = {"encoding": encoding, "delimiter": separators.delimiter, "strip": True}
    if separators.quote != '"':
        options["quote"] = separators.quote
    notes = {"encoding": encoding_reason, "delimiter": separators.reason, "header": header_reason}
    notes |= {"quote": "DuckDB's CSV sniffer finds it around texts"} if "quote" in options else {}
    width = Counter(len(row) for row in rows).most_common(1)[0][0]
    names = tuple(rows[0]) if has_header else tuple(f"column_{number}" for number in range(1, width + 1))
    if columns is not None:
        options |= {"header": False, "columns": list(columns)} | ({"skip_lines": 1} if has_header else {})
        names = tuple(columns)
        _require_width(locations[0], names, width)
    elif not has_header:
        options |= {"header": False, "columns": list(names)}
    elif (not all(names) or len(set(names)) < len(names)) and _parse(sample.split("\n", 1)[0], separators) == rows[:1]:
        names = _complete_names(names)
        options |= {"header": False, "columns": list(names), "skip_lines": 1}
        notes["columns"] = "the header has a repeated or an empty name, so these names replace it"
    return CsvDialect(names, options, notes)


def _infer_encoding(locations: Sequence[FileLocation]) -> tuple[str, str]:
    """Returns UTF-8 where all bytes or nearly all lines are UTF-8, else a guess; and the reason."""
    for location in locations:
        with location.open_stream() as stream:
            start = stream.peek(4)[:4]
            encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
            if encoding is not None:
                return encoding, "the file's byte order mark says so"
            if b"\0" in stream.peek(SAMPLE_BYTES)[:SAMPLE_BYTES]:
                raise _not_csv_error(location, f"it is no text, and begins with the bytes {start.hex(' ')}")
        if not _is_utf8(location):
            return _infer_other_encoding(location)
    return "utf-8", "all bytes are UTF-8"


def _is_utf8(location: FileLocation) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with location.open_stream() as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _infer_other_encoding(location: FileLocation) -> tuple[str, str]:
    num_valid = num_invalid = 0
    is_cp1252 = True
    with location.open_stream() as stream:
        for line in stream:
            if line.isascii():
                continue
            is_cp1252 = is_cp1252 and _NOT_CP1252.search(line) is None
            try:
                line.decode("utf-8")
                num_valid += 1
            except UnicodeDecodeError:
                num_invalid += 1
    if num_valid >= num_invalid:
        return "utf-8", f"{num_invalid} lines are not UTF-8 and become malformed lines"
    encoding = "cp1252" if is_cp1252 else "latin-1"
    return encoding, f"{num_invalid} lines are not UTF-8; check letters with accents, and change it if they are wrong"


def _read_sample(location: FileLocation, encoding: str) -> str:
    """Returns the text of the first 64 kB, up to the end of its last complete line."""
    with location.open_stream() as stream:
        start = stream.read(SAMPLE_BYTES)
        is_complete = not stream.read(1)
    if not start.strip():
        raise _not_csv_error(location, "it is empty")
    text = codecs.getincrementaldecoder(encoding)("replace").decode(start, is_complete).removeprefix("\ufeff")
    end = len(text) if is_complete else max(text.rfind("\n") + 1, 0) or len(text)
    return text[:end]


def _parse(sample: str, separators: _Separators) -> list[list[str]]:
    """Returns the sample's rows without blank ones, and without spaces around cells."""
    reader = csv.reader(
        io.StringIO(sample, newline=""), delimiter=separators.delimiter, quotechar=separators.quote or '"'
    )
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # a cell that is too long for Python's reader: the rows before it suffice
        rows.extend(row for row in ([cell.strip() for cell in cells] for cells in reader) if any(row))
    return rows


def _infer_separators(sample: str, label: str) -> _Separators:
    """Returns what DuckDB finds, or what counting cells finds where that alone puts the label into the first row."""
    counted_separators, sniffed_separators = _count_cells(sample), _sniff(sample)
    if sniffed_separators is None:
        return counted_separators
    if label not in _first_row(sample, sniffed_separators) and label in _first_row(sample, counted_separators):
        return counted_separators
    return sniffed_separators


def _first_row(sample: str, separators: _Separators) -> list[str]:
    return next(iter(_parse(sample, separators)), [])


def _sniff(sample: str) -> _Separators | None:
    """Returns what DuckDB's sniffer finds; None where it finds one column, as with a delimiter that it never tries."""
    import duckdb

    with tempfile.TemporaryDirectory(dir=settings().home) as folder, duckdb.connect() as connection:
        path = Path(folder) / "sample.csv"
        path.write_text(sample, encoding="utf-8", newline="")
        query = "select Delimiter, Quote, len(Columns) from sniff_csv(?, all_varchar = true)"
        try:
            delimiter, quote, num_columns = connection.execute(query, [str(path)]).fetchall()[0]
        except duckdb.Error:
            return None
    if num_columns < 2:
        return None
    return _Separators(
        delimiter, "'" if quote == "'" else '"', f"DuckDB's CSV sniffer finds {num_columns} columns with it"
    )


def _count_cells(sample: str) -> _Separators:
    """Returns the delimiter that splits most rows into the same number of cells, and then into most cells."""
    best_separators, score = _Separators(",", '"', "no delimiter splits the first rows alike"), (0.0, 0)
    for delimiter in _DELIMITERS:
        widths = Counter(len(row) for row in _parse(sample, _Separators(delimiter, '"', "")))
        width, count = widths.most_common(1)[0] if widths else (1, 0)
        share = round(count / max(widths.total(), 1), 1)
        if width > 1 and (share, width) > score and (delimiter not in " :" or score == (0.0, 0)):
            score = (share, width)
            best_separators = _Separators(delimiter, '"', f"it splits {share:.0%} of the first rows into {width} cells")
    return best_separators


def _infer_header(rows: list[list[str]], label: str, columns: Sequence[str] | None) -> tuple[bool, str]:
    first_row, body = rows[0], rows[1:200]
    if columns is None and label in first_row:
        return True, f"the first row contains the name {label}"
    if columns is None and re.fullmatch(r"column_\d+", label):
        return False, "--label names a numbered column, so there is no header"
    if columns is not None and [name.strip() for name in columns] == first_row:
        return True, "the first row has the names of --columns and is skipped"
    if any(_NUMBER_OR_DATE.fullmatch(cell) for cell in first_row):
        return False, "the first row has numbers or dates"
    cells_below = [[row[index] for row in body if index < len(row)] for index in range(len(first_row))]
    if any(
        sum(_NUMBER_OR_DATE.fullmatch(cell) is not None for cell in cells) > len(cells) / 2 for cells in cells_below
    ):
        return True, "the first row has names above columns of numbers"
    is_new = all(cell and cell not in cells for cell, cells in zip(first_row, cells_below, strict=True))
    if is_new and columns is None:
        return True, "the first row has texts that occur in no other row"
    return False, "the first row looks like the other rows"


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


def _not_csv_error(location: FileLocation, problem: str) -> DataMissing:
    return DataMissing(
        f"{location.path} cannot be read as CSV: {problem}",
        required="a text with rows of cells",
        where=location.path,
        remedy="choose another file, or set --format",
    )
