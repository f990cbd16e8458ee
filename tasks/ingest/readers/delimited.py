"""CSV and its relatives: every cell comes as text, and a line that is no row is put aside with its number."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.ingest.locations import BUFFER_BYTES, FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, printable_text, unreadable_error
from bloomery.tasks.ingest.readers.csv_lexer import Lexer, split_records

MAX_ROW_BYTES = 4 << 20  # no row may be longer
MAX_MALFORMED_ROWS = 100_000  # of one file: they are kept until the file has been read
_WHOLE_ROWS = "rows whose quotes close"
_DIALECT = "the delimiter, quote, header, columns and encoding that are stated in the recipe"


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """The rows of delimited files, all columns as strings, where missing cells are null.

    Raises:
        DataMissing: a file has no header or another one, or is not in the stated encoding or dialect.
    """
    return files.read_files(data, origin, malformed, _schema, _batches)


class _Opened(NamedTuple):
    """A file in UTF-8 behind its header; `line` is the number of the line that comes next."""

    stream: io.BufferedReader
    names: list[str]
    line: int


def _schema(place: FileLocation, data: Data) -> pa.Schema:
    with place.stream() as raw:
        return pa.schema([(name, pa.string()) for name in _open(raw, place, data).names])


def _open(raw: io.BufferedReader, place: FileLocation, data: Data) -> _Opened:
    stream = transcode_to_utf8(raw, data.encoding or "utf-8")
    line = 1
    for _ in range(data.skip_lines or 0):
        line += bool(_next_line(stream, place))
    if data.comment:
        stream = _fed(_without_comments(stream, data))
    if data.columns is not None:
        return _Opened(stream, list(data.columns), line)
    try:
        number, header = next(split_records(stream, make_lexer(data), line))
        if header.endswith(b"\r"):
            raise unreadable_error(
                place.path, "its lines end by carriage returns alone", "lines that end by a line feed"
            )
        text = header.decode("utf-8")
        quote, escape = data.quote if data.quote is not None else '"', data.escape
        names = next(
            csv.reader(
                io.StringIO(text, newline=""),
                delimiter=data.delimiter or ",",
                quotechar=quote or None,
                quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
                escapechar=escape,
            )
        )
    except StopIteration:
        raise unreadable_error(place.path, "it is empty", "a header with the names of the columns") from None
    except (UnicodeDecodeError, csv.Error) as failure:
        raise unreadable_error(place.path, f"its header is no row of names: {failure}", "names in one row") from failure
    names = [name.strip() if data.strip else name for name in names]
    if not all(names):
        raise unreadable_error(
            place.path, f"column {names.index('') + 1} of its header has no name", "a name per column"
        )
    return _Opened(stream, names, number + max(header.count(b"\n"), 1))


def _next_line(stream: io.BufferedReader, place: FileLocation) -> bytes:
    line = stream.readline(MAX_ROW_BYTES)
    if len(line) == MAX_ROW_BYTES:
        raise unreadable_error(place.path, f"a line is longer than {MAX_ROW_BYTES:,} bytes", "lines of text")
    return line


def make_lexer(data: Data) -> Lexer:
    quote = '"' if data.quote is None else data.quote
    return Lexer((data.delimiter or ",").encode(), quote.encode(), (data.escape or "").encode())


def transcode_to_utf8(raw: io.BufferedReader, encoding: str) -> io.BufferedReader:
    """The same text in UTF-8 without a byte order mark; bytes that are not in `encoding` become no UTF-8 either."""
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
        if codecs.lookup(encoding).name == "ascii":
            return _fed(_transcoded(raw, encoding))
        if raw.peek(3)[:3] == codecs.BOM_UTF8:
            raw.read(3)
        return raw
    return _fed(_transcoded(raw, encoding))


def _transcoded(raw: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    while piece := raw.read(BUFFER_BYTES):
        yield decoder.decode(piece).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _without_comments(stream: io.BufferedReader, data: Data) -> Iterator[bytes]:
    """The text with comments emptied, so that the numbers of lines stay. Inside quotes there are none."""
    lexer, sign, is_open = make_lexer(data), (data.comment or "").encode(), False
    while lines := stream.readlines(BUFFER_BYTES):
        for index, line in enumerate(lines):
            if not is_open and line.startswith(sign):
                lines[index] = b"\n"
            else:
                is_open = lexer.is_open(line, is_open)
        yield b"".join(lines)


class _Feed(io.RawIOBase):
    """A byte stream over pieces that are made one by one."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken


def _fed(pieces: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Feed(pieces), BUFFER_BYTES)


class _Faults:
    """What is wrong in one file: `rows` by their ordinal among the file's rows, `cells` by that among the good ones."""

    def __init__(self, strip: bool) -> None:
        self.rows: dict[int, str | None] = {}  # None for a line of white space, which is no fault
        self.cells: dict[int, str] = {}
        self._strip = strip

    def on_row(self, row: pcsv.InvalidRow) -> str:
        is_blank = self._strip and not row.text.strip()
        told = f"{row.actual_columns} cell(s), where {row.expected_columns} are required"
        self.rows[row.number] = None if is_blank else told
        return "error" if self.are_too_many else "skip"

    @property
    def are_too_many(self) -> bool:
        return len(self.rows) + len(self.cells) > MAX_MALFORMED_ROWS


def _batches(
    place: FileLocation, data: Data, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    faults = _Faults(bool(data.strip))
    num_good = 0
    try:
        with place.stream() as raw:
            opened = _open(raw, place, data)
            if not opened.stream.peek(1):
                return
            for batch in _parsed(opened, data, faults):
                good = _without_bad_bytes(batch, num_good, faults, data.encoding or "utf-8")
                num_good += batch.num_rows
                _require_few(place, faults)
                yield _cleaned(good.select(schema.names), schema, data)
    except UnicodeDecodeError as failure:
        raise unreadable_error(
            place.path, f"it is not in {data.encoding}: {failure}", "the encoding stated"
        ) from failure
    except pa.ArrowInvalid as failure:
        _require_few(place, faults)
        if "straddling" in str(failure):
            raise _too_long(place, data) from failure
        raise
    if any(faults.rows.values()) or faults.cells:
        _put_aside(place, data, faults, malformed)


def _parsed(opened: _Opened, data: Data, faults: _Faults) -> Iterator[pa.RecordBatch]:
    quote = '"' if data.quote is None else data.quote
    missing = [""] if data.missing is None else list(data.missing)
    try:
        reader = pcsv.open_csv(
            pa.PythonFile(opened.stream, mode="r"),
            # One thread, since Arrow tells the numbers of rows to one thread only; it is as fast.
            read_options=pcsv.ReadOptions(column_names=opened.names, use_threads=False, block_size=MAX_ROW_BYTES),
            parse_options=pcsv.ParseOptions(
                delimiter=data.delimiter or ",",
                quote_char=quote or False,
                escape_char=data.escape or False,
                newlines_in_values=True,
                invalid_row_handler=faults.on_row,
            ),
            convert_options=pcsv.ConvertOptions(
                column_types={name: pa.string() for name in opened.names},
                null_values=[] if data.strip else missing,
                strings_can_be_null=True,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as failure:
        if "Empty CSV file" in str(failure):
            return
        raise
    yield from reader


def _without_bad_bytes(batch: pa.RecordBatch, start: int, faults: _Faults, encoding: str) -> pa.RecordBatch:
    bad = np.zeros(batch.num_rows, bool)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            for row, cell in enumerate(column.cast(pa.binary()).to_pylist()):
                if cell is not None and not _is_utf8(cell):
                    bad[row] = True
                    faults.cells.setdefault(start + row, f"bytes in column {name} that are not {encoding}")
    return batch.filter(pa.array(~bad)) if bad.any() else batch


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _cleaned(batch: pa.RecordBatch, schema: pa.Schema, data: Data) -> pa.RecordBatch:
    if not data.strip:
        return batch
    missing = pa.array([""] if data.missing is None else list(data.missing), pa.string())
    columns = []
    for column in batch.columns:
        cells = pc.ascii_trim_whitespace(column)
        is_missing = pc.is_in(cells, missing)
        columns.append(pc.if_else(is_missing, pa.scalar(None, pa.string()), cells))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _require_few(place: FileLocation, faults: _Faults) -> None:
    if faults.are_too_many:
        told = next((reason for reason in (*faults.rows.values(), *faults.cells.values()) if reason), "blank")
        raise unreadable_error(
            place.path, f"more than {MAX_MALFORMED_ROWS:,} lines are no rows; the first has {told}", _DIALECT
        )


def _too_long(place: FileLocation, data: Data) -> Exception:
    with place.stream() as raw:
        opened = _open(raw, place, data)
        rows = split_records(opened.stream, make_lexer(data), opened.line)
        line = next((line for line, text in rows if len(text) >= MAX_ROW_BYTES // 2), opened.line)
    told = f"the row at line {line} is longer than {MAX_ROW_BYTES:,} bytes; a quote opens there and does not close"
    return unreadable_error(place.path, told, f"{_WHOLE_ROWS}, or `quote: ''` in the recipe")


def _put_aside(place: FileLocation, data: Data, faults: _Faults, malformed: MalformedWriter) -> None:
    """Read the file once more, up to the last fault, for the numbers of lines and their text."""
    last_row, last_cell, num_good = max(faults.rows, default=0), max(faults.cells, default=-1), 0
    with place.stream() as raw:
        opened = _open(raw, place, data)
        for ordinal, (line, text) in enumerate(split_records(opened.stream, make_lexer(data), opened.line), 1):
            if ordinal in faults.rows:
                reason = faults.rows[ordinal]
            else:
                reason = faults.cells.get(num_good)
                num_good += 1
            if reason is not None:
                num_lines = text.rstrip(b"\r\n").count(b"\n") + 1
                reason += f"; quotes make one row of {num_lines:,} lines" if num_lines > 1 else ""
                malformed.add(place.relative, line, printable_text(text), reason)
            if ordinal >= last_row and num_good > last_cell:
                return
