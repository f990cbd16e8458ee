"""How a delimited text is written: encoding, delimiter, header. Guessed when a recipe is drafted, and then stated."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.scaffolding.column_names import unused_name

SAMPLE_BYTES = 65_536
_PIECE_BYTES = 1 << 20
_DELIMITERS = (",", ";", "\t", "|", ":", " ")
_MARKED = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_WINDOWS = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # bytes that cp1252 gives no meaning
_VALUE = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?|\d{4}-\d{2}-\d{2}.*")


class CsvDialect(NamedTuple):
    """The names of the columns, and the options of `data` that read them; `notes` say what they were guessed from."""

    names: tuple[str, ...]
    options: dict[str, object]
    notes: dict[str, str]


def infer_dialect(
    places: Sequence[FileLocation], label: str, delimiter: str | None = None, columns: Sequence[str] | None = None
) -> CsvDialect:
    """The dialect of files that are written alike. A first row with the `label` in it is taken for the header.

    Raises:
        DataMissing: a file is empty or no text.
    """
    encoding, why_encoding = _encoding(places)
    sample = _sample(places[0], encoding)
    found, why_delimiter = (delimiter, "as stated") if delimiter else _delimiter(sample)
    rows = _cells(sample, found)
    if not rows:
        raise _no_text(places[0], "it has no row")
    has_header, why_header = _header(rows, label, columns)
    options: dict[str, object] = {"encoding": encoding, "delimiter": found, "strip": True}
    notes = {"encoding": why_encoding, "delimiter": why_delimiter, "header": why_header}
    width = Counter(len(row) for row in rows).most_common(1)[0][0]
    names = tuple(rows[0]) if has_header else tuple(f"column_{number}" for number in range(1, width + 1))
    if columns is not None:
        options |= {"header": False, "columns": list(columns)} | ({"skip_lines": 1} if has_header else {})
        names = tuple(columns)
        _require_width(places[0], names, width)
    elif not has_header:
        options |= {"header": False, "columns": list(names)}
    elif (not all(names) or len(set(names)) < len(names)) and _cells(sample.split("\n", 1)[0], found) == rows[:1]:
        names = _completed(names)
        options |= {"header": False, "columns": list(names), "skip_lines": 1}
        notes["columns"] = "the header names a column twice, or not at all, so it is passed over"
    return CsvDialect(names, options, notes)


def _encoding(places: Sequence[FileLocation]) -> tuple[str, str]:
    """UTF-8 where the bytes are, or nearly all lines are; else a guess."""
    for place in places:
        with place.open_stream() as stream:
            start = stream.peek(4)[:4]
            marked = next((name for mark, name in _MARKED.items() if start.startswith(mark)), None)
            if marked is not None:
                return marked, "the file's byte order mark says so"
            if b"\0" in stream.peek(SAMPLE_BYTES)[:SAMPLE_BYTES]:
                raise _no_text(place, f"it is no text, and begins with the bytes {start.hex(' ')}")
        if not _is_utf8(place):
            return _not_utf8(place)
    return "utf-8", "all bytes are UTF-8"


def _is_utf8(place: FileLocation) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with place.open_stream() as stream:
            while piece := stream.read(_PIECE_BYTES):
                decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8(place: FileLocation) -> tuple[str, str]:
    num_good = num_bad = 0
    is_windows = True
    with place.open_stream() as stream:
        for line in stream:
            if line.isascii():
                continue
            is_windows = is_windows and _NO_WINDOWS.search(line) is None
            try:
                line.decode("utf-8")
                num_good += 1
            except UnicodeDecodeError:
                num_bad += 1
    if num_good >= num_bad:
        return "utf-8", f"{num_bad} lines are not UTF-8, and are put aside"
    name = "cp1252" if is_windows else "latin-1"
    return (
        name,
        f"{num_bad} lines are not UTF-8; look at letters with accents, and state another if they are wrong",
    )


def _sample(place: FileLocation, encoding: str) -> str:
    """The text of the first 64 kB, up to the end of its last whole line."""
    with place.open_stream() as stream:
        start = stream.read(SAMPLE_BYTES)
        is_all = not stream.read(1)
    if not start.strip():
        raise _no_text(place, "it is empty")
    text = codecs.getincrementaldecoder(encoding)("replace").decode(start, is_all).removeprefix("\ufeff")
    end = len(text) if is_all else max(text.rfind("\n") + 1, 0) or len(text)
    return text[:end]


def _cells(sample: str, delimiter: str) -> list[list[str]]:
    """The sample's rows, blank ones left out, without spaces around cells."""
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):  # a cell beyond what Python's reader takes; the rows before it tell enough
        rows.extend(row for row in ([cell.strip() for cell in cells] for cells in reader) if any(row))
    return rows


def _delimiter(sample: str) -> tuple[str, str]:
    """The sign that cuts most rows into one number of cells, and then into most cells."""
    best, score = ",", (0.0, 0)
    for sign in _DELIMITERS:
        widths = Counter(len(row) for row in _cells(sample, sign))
        width, count = widths.most_common(1)[0] if widths else (1, 0)
        found = (round(count / max(widths.total(), 1), 1), width)
        if width > 1 and found > score and (sign not in " :" or score == (0.0, 0)):
            best, score = sign, found
    if score == (0.0, 0):
        return ",", "no sign cuts the first rows alike"
    return best, f"it cuts {score[0]:.0%} of the first rows into {score[1]} cells"


def _header(rows: list[list[str]], label: str, columns: Sequence[str] | None) -> tuple[bool, str]:
    first, rest = rows[0], rows[1:200]
    if columns is None and label in first:
        return True, f"the first row has the name {label}"
    if columns is None and re.fullmatch(r"column_\d+", label):
        return False, "as --label asks: no header, so the columns are numbered"
    if columns is not None and [one.strip() for one in columns] == first:
        return True, "the first row has the names that were given, and is passed over"
    if any(_VALUE.fullmatch(cell) for cell in first):
        return False, "the first row holds numbers or dates"
    below = [[row[place] for row in rest if place < len(row)] for place in range(len(first))]
    if any(sum(_VALUE.fullmatch(cell) is not None for cell in cells) > len(cells) / 2 for cells in below):
        return True, "the first row holds names above columns of numbers"
    is_new = all(cell and cell not in cells for cell, cells in zip(first, below, strict=True))
    if is_new and columns is None:
        return True, "the first row holds texts that no row below has"
    return False, "the first row looks like those below"


def _completed(names: Sequence[str]) -> tuple[str, ...]:
    """A name for each column, and none twice."""
    found: list[str] = []
    for place, name in enumerate(names, 1):
        found.append(unused_name(name or f"column_{place}", [*found, *names[place:]] if not name else found))
    return tuple(found)


def _require_width(place: FileLocation, names: Sequence[str], width: int) -> None:
    if len(names) != width:
        raise DataMissing(
            f"{len(names)} names were given, and the rows have {width} cells",
            required="a name for each cell, in the order of the cells",
            where=f"--columns, for {place.path}",
            remedy="mend --columns, or state --delimiter",
        )


def _no_text(place: FileLocation, found: str) -> DataMissing:
    return DataMissing(
        f"{place.path} cannot be read as CSV: {found}",
        required="a text with rows of cells",
        where=place.path,
        remedy="give another file, or state --format",
    )
