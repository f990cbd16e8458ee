"""CSV and its relatives: every cell is read as text, and malformed rows are set aside with their line numbers."""

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

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import BUFFER_BYTES, FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, printable_text, unreadable_error
from bloomery.tasks.ingest.readers.csv_lexer import Lexer, split_records

MAX_ROW_BYTES = 4 << 20
MAX_MALFORMED_ROWS = 100_000  # of one file: they are kept in memory until the file has been read
_CLOSED_QUOTES = "rows with closed quotes"
_DIALECT = "the recipe's delimiter, quote, header, columns and encoding"


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of delimited files. All columns are strings, and missing cells are null.

    Raises:
        DataMissing: a file has no header or another one, or does not have the recipe's encoding or dialect.
    """
    return files.read_files(data, origin, malformed, _read_schema, _read_batches)


class _OpenFile(NamedTuple):
    """A file in UTF-8, read up to the end of its header; `line` is the number of the next line."""

    stream: io.BufferedReader
    names: list[str]
    line: int


def _read_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    with location.open_stream() as raw:
        return pa.schema([(name, pa.string()) for name in _open(raw, location, data).names])


def _open(raw: io.BufferedReader, location: FileLocation, data: DataSource) -> _OpenFile:
    stream = transcode_to_utf8(raw, data.encoding or "utf-8")
    line = 1
    for _ in range(data.skip_lines or 0):
        line += bool(_skip_line(stream, location))
    if data.comment:
        stream = _to_stream(_blank_comments(stream, data))
    if data.columns is not None:
        return _OpenFile(stream, list(data.columns), line)
    try:
        number, header = next(split_records(stream, make_lexer(data), line))
        names = _parse_header(header, location, data)
    except StopIteration:
        raise unreadable_error(location.path, "it is empty", "a header with the names of the columns") from None
    except (UnicodeDecodeError, csv.Error) as failure:
        raise unreadable_error(location.path, f"its header has no names: {failure}", "names in one row") from failure
    if not all(names):
        problem = f"column {names.index('') + 1} of its header has no name"
        raise unreadable_error(location.path, problem, "a name per column")
    return _OpenFile(stream, names, number + max(header.count(b"\n"), 1))


def _parse_header(header: bytes, location: FileLocation, data: DataSource) -> list[str]:
    if header.endswith(b"\r"):
        problem = "its lines end with carriage returns alone"
        raise unreadable_error(location.path, problem, "lines that end with a line feed")
    quote = data.quote if data.quote is not None else '"'
    names = next(
        csv.reader(
            io.StringIO(header.decode("utf-8"), newline=""),
            delimiter=data.delimiter or ",",
            quotechar=quote or None,
            quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
            escapechar=data.escape,
        )
    )
    return [name.strip() if data.strip else name for name in names]


def _skip_line(stream: io.BufferedReader, location: FileLocation) -> bytes:
    line = stream.readline(MAX_ROW_BYTES)
    if len(line) == MAX_ROW_BYTES:
        raise unreadable_error(location.path, f"a line is longer than {MAX_ROW_BYTES:,} bytes", "lines of text")
    return line


def make_lexer(data: DataSource) -> Lexer:
    quote = '"' if data.quote is None else data.quote
    return Lexer((data.delimiter or ",").encode(), quote.encode(), (data.escape or "").encode())


def transcode_to_utf8(raw: io.BufferedReader, encoding: str) -> io.BufferedReader:
    """Returns the text in UTF-8 without a byte order mark. Bytes that are invalid in `encoding` stay invalid."""
    if codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii"):
        if codecs.lookup(encoding).name == "ascii":
            return _to_stream(_transcode(raw, encoding))
        if raw.peek(3)[:3] == codecs.BOM_UTF8:
            raw.read(3)
        return raw
    return _to_stream(_transcode(raw, encoding))


def _transcode(raw: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    while chunk := raw.read(BUFFER_BYTES):
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _blank_comments(stream: io.BufferedReader, data: DataSource) -> Iterator[bytes]:
    """Yields the text with blank lines for comments, so that line numbers stay. Inside quotes there are none."""
    lexer, sign, is_open = make_lexer(data), (data.comment or "").encode(), False
    while lines := stream.readlines(BUFFER_BYTES):
        for index, line in enumerate(lines):
            if not is_open and line.startswith(sign):
                lines[index] = b"\n"
            else:
                is_open = lexer.is_open(line, is_open)
        yield b"".join(lines)


class _ChunkStream(io.RawIOBase):
    """A byte stream over chunks that an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _to_stream(chunks: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_ChunkStream(chunks), BUFFER_BYTES)


class _Faults:
    """The faults of one file: `rows` by number among all its rows, from 1, `cells` by index among its parsed rows."""

    def __init__(self, strip: bool) -> None:
        self.rows: dict[int, str | None] = {}  # None for a line of white space, which is no fault
        self.cells: dict[int, str] = {}
        self._strip = strip

    def on_invalid_row(self, row: pcsv.InvalidRow) -> str:
        is_blank = self._strip and not row.text.strip()
        reason = f"{row.actual_columns} cell(s), where {row.expected_columns} are required"
        self.rows[row.number] = None if is_blank else reason
        return "error" if self.are_too_many else "skip"

    @property
    def are_too_many(self) -> bool:
        return len(self.rows) + len(self.cells) > MAX_MALFORMED_ROWS


def _read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    faults = _Faults(bool(data.strip))
    num_parsed = 0
    try:
        with location.open_stream() as raw:
            file = _open(raw, location, data)
            if not file.stream.peek(1):
                return
            for batch in _parse(file, data, faults):
                valid = _drop_invalid_text(batch, num_parsed, faults, data.encoding or "utf-8")
                num_parsed += batch.num_rows
                _require_few_faults(location, faults)
                yield _strip_cells(valid.select(schema.names), schema, data)
    except UnicodeDecodeError as failure:
        problem = f"it is not in {data.encoding}: {failure}"
        raise unreadable_error(location.path, problem, "the recipe's encoding") from failure
    except pa.ArrowInvalid as failure:
        _require_few_faults(location, faults)
        if "straddling" in str(failure):
            raise _too_long_error(location, data) from failure
        raise
    if any(faults.rows.values()) or faults.cells:
        _write_malformed(location, data, faults, malformed)


def _parse(file: _OpenFile, data: DataSource, faults: _Faults) -> Iterator[pa.RecordBatch]:
    quote = '"' if data.quote is None else data.quote
    missing = list(data.missing_texts)
    try:
        reader = pcsv.open_csv(
            pa.PythonFile(file.stream, mode="r"),
            # One thread, since Arrow gives the numbers of rows to one thread only. It is as fast.
            read_options=pcsv.ReadOptions(column_names=file.names, use_threads=False, block_size=MAX_ROW_BYTES),
            parse_options=pcsv.ParseOptions(
                delimiter=data.delimiter or ",",
                quote_char=quote or False,
                escape_char=data.escape or False,
                newlines_in_values=True,
                invalid_row_handler=faults.on_invalid_row,
            ),
            convert_options=pcsv.ConvertOptions(
                column_types={name: pa.string() for name in file.names},
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


def _drop_invalid_text(batch: pa.RecordBatch, start: int, faults: _Faults, encoding: str) -> pa.RecordBatch:
    """Returns the rows that are completely UTF-8, and adds the others to `faults`; the first row has index `start`."""
    is_invalid = np.zeros(batch.num_rows, bool)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            for row, cell in enumerate(column.cast(pa.binary()).to_pylist()):
                if cell is not None and not _is_utf8(cell):
                    is_invalid[row] = True
                    faults.cells.setdefault(start + row, f"bytes in column {name} that are not {encoding}")
    return batch.filter(pa.array(~is_invalid)) if is_invalid.any() else batch


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _strip_cells(batch: pa.RecordBatch, schema: pa.Schema, data: DataSource) -> pa.RecordBatch:
    if not data.strip:
        return batch
    missing = pa.array(data.missing_texts, pa.string())
    columns = []
    for column in batch.columns:
        cells = pc.ascii_trim_whitespace(column)
        is_missing = pc.is_in(cells, missing)
        columns.append(pc.if_else(is_missing, pa.scalar(None, pa.string()), cells))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _require_few_faults(location: FileLocation, faults: _Faults) -> None:
    if faults.are_too_many:
        first = next((reason for reason in (*faults.rows.values(), *faults.cells.values()) if reason), "blank")
        problem = f"more than {MAX_MALFORMED_ROWS:,} lines are malformed; the first has {first}"
        raise unreadable_error(location.path, problem, _DIALECT)


def _too_long_error(location: FileLocation, data: DataSource) -> Exception:
    with location.open_stream() as raw:
        file = _open(raw, location, data)
        records = split_records(file.stream, make_lexer(data), file.line)
        line = next((line for line, text in records if len(text) >= MAX_ROW_BYTES // 2), file.line)
    problem = f"the row at line {line} is longer than {MAX_ROW_BYTES:,} bytes; a quote opens there and does not close"
    return unreadable_error(location.path, problem, f"{_CLOSED_QUOTES}, or `quote: ''` in the recipe")


def _write_malformed(location: FileLocation, data: DataSource, faults: _Faults, malformed: MalformedWriter) -> None:
    """Reads the file again, up to the last fault, for the line numbers and the text of malformed rows."""
    last_row, last_cell, num_parsed = max(faults.rows, default=0), max(faults.cells, default=-1), 0
    with location.open_stream() as raw:
        file = _open(raw, location, data)
        for number, (line, text) in enumerate(split_records(file.stream, make_lexer(data), file.line), 1):
            if number in faults.rows:
                reason = faults.rows[number]
            else:
                reason = faults.cells.get(num_parsed)
                num_parsed += 1
            if reason is not None:
                num_lines = text.rstrip(b"\r\n").count(b"\n") + 1
                reason += f"; quotes make one row of {num_lines:,} lines" if num_lines > 1 else ""
                malformed.add(location.relative, line, printable_text(text), reason)
            if number >= last_row and num_parsed > last_cell:
                return
