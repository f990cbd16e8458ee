"""CSV and its relatives: every cell is read as text, and malformed rows are set aside with their line numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import BUFFER_BYTES, FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, printable_text, unreadable_error
from bloomery.tasks.ingest.readers.text_files.csv_faults import Faults
from bloomery.tasks.ingest.readers.text_files.csv_lexer import Lexer, QuoteRepair, split_lines, split_records
from bloomery.tasks.ingest.readers.text_files.number_texts import notation_of, require_number_columns, rewrite_columns
from bloomery.tasks.ingest.readers.text_files.text_streams import (
    end_lines_with_feeds,
    join_chunks,
    to_stream,
    transcode_to_utf8,
)

MAX_ROW_BYTES = 4 << 20
_TRAILING = ""  # the name of the empty cell behind a trailing delimiter, which no column has
_LINE_FEED = re.compile(rb"\n")


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of delimited files. All columns are strings, and missing cells are null.

    Raises:
        DataMissing: a file has no header or another one, or does not have the recipe's encoding or dialect.
    """
    return files.read_files(data, origin, malformed, read_schema, read_batches)


class _OpenFile(NamedTuple):
    """A file in UTF-8, read up to the end of its header; `line` is the number of the next line."""

    stream: io.BufferedReader
    names: list[str]
    line: int


def read_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    """Returns the columns of a file, which are all strings."""
    with location.open_stream() as raw:
        names = _open(raw, location, data).names
    require_number_columns(names, data, location.path)
    return pa.schema([(name, pa.string()) for name in names])


def _open(raw: io.BufferedReader, location: FileLocation, data: DataSource) -> _OpenFile:
    stream = end_lines_with_feeds(transcode_to_utf8(raw, data.encoding or "utf-8"))
    line = 1
    for _ in range(data.skip_lines or 0):
        line += bool(_skip_line(stream, location))
    if data.comment or data.skip_initial_space:
        stream = to_stream(_clean_lines(stream, data))
    if data.columns is not None:
        return _OpenFile(stream, list(data.columns), line)
    try:
        number, header = next(split_records(split_lines(stream), make_lexer(data), line))
        if header.count(b"\n") > 1 and make_lexer(data).count_cells(header) is None:
            problem = f"a quote opens in line {number}, where the header is required, and does not close"
            raise unreadable_error(location.path, problem, "names in closed quotes", options=("skip_lines", "quote"))
        names = _parse_header(header, location, data)
    except StopIteration:
        raise unreadable_error(location.path, "it is empty", "a header with the names of the columns") from None
    except (UnicodeDecodeError, csv.Error) as failure:
        problem = f"its header has no names: {failure}"
        options = ("encoding", "delimiter", "skip_lines")
        raise unreadable_error(location.path, problem, "names in one row", options=options) from failure
    if data.trailing_delimiter and names[-1] == "":
        names.pop()
    if not all(names):
        problem = f"column {names.index('') + 1} of its header has no name"
        options = ("skip_lines", "columns", "trailing_delimiter")
        raise unreadable_error(location.path, problem, "a name per column", options=options)
    return _OpenFile(stream, names, number + max(header.count(b"\n"), 1))


def _parse_header(header: bytes, location: FileLocation, data: DataSource) -> list[str]:
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


def _clean_lines(stream: io.BufferedReader, data: DataSource) -> Iterator[bytes]:
    """Yields the text with blank lines for comments, so that line numbers stay, and without spaces before quotes.

    Inside quotes there are neither.
    """
    lexer, sign, is_open = make_lexer(data), (data.comment or "").encode(), False
    while lines := stream.readlines(BUFFER_BYTES):
        for index, line in enumerate(lines):
            if sign and not is_open and line.startswith(sign):
                lines[index] = b"\n"
            elif data.skip_initial_space:
                lines[index], is_open = lexer.strip_initial_spaces(line, is_open)
            else:
                is_open = lexer.is_open(line, is_open)
        yield b"".join(lines)


def read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a file."""
    section: _Section | None = _Section(location, data, schema)
    while section is not None:
        yield from section.read_batches()
        section.write_malformed(malformed)
        section = section.rest


class _Section:
    """The rows of a file from number `start`, from 0.

    Arrow's reader is fast, and takes all lines behind a quote that does not close as one cell. The first section ends
    in front of the first batch that has rows of several lines, and `rest` reads from there line by line: it sets lines
    with such a quote aside.
    """

    def __init__(self, location: FileLocation, data: DataSource, schema: pa.Schema, start: int | None = None) -> None:
        self.faults = Faults(strip=bool(data.strip), quote='"' if data.quote is None else data.quote)
        self.rest: _Section | None = None
        self._location, self._data, self._schema = location, data, schema
        self._start = start  # None for the first section, which is not repaired
        self._num_parsed = 0

    def read_batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the batches of this section. Afterwards `rest` is the next one, if there is one."""
        may_be_swallowed = self._start is None and self._data.quote != ""
        try:
            with self._location.open_stream() as raw:
                file = self._open(raw, self.faults)
                for batch in _parse(file, self._data, self.faults) if file.stream.peek(1) else ():
                    if may_be_swallowed and (self.faults.have_lines or _has_lines(batch)):
                        self._end()
                        return
                    valid = self._drop_faulty_rows(batch)
                    self._num_parsed += batch.num_rows
                    self.faults.require_few(self._location.path)
                    yield self._to_rows(valid)
        except UnicodeDecodeError as failure:
            problem = f"it is not in {self._data.encoding}: {failure}"
            required = "the encoding that is set"
            raise unreadable_error(self._location.path, problem, required, options=("encoding",)) from failure
        except pa.ArrowInvalid as failure:
            self.faults.require_few(self._location.path)
            if "straddling" not in str(failure):
                raise
            if not may_be_swallowed:
                raise self._too_long_error() from failure
            self._end()
            return
        self.faults.require_few(self._location.path)
        if may_be_swallowed and self.faults.have_lines:
            self._end()

    def _end(self) -> None:
        """Ends the section behind the rows that it has returned."""
        self.faults, num_rows = self.faults.select_first(self._num_parsed)
        self.rest = _Section(self._location, self._data, self._schema, num_rows)

    def _open(self, raw: io.BufferedReader, faults: Faults | None) -> _OpenFile:
        """Opens the file behind the first rows, without lines with unclosed quotes, which are added to `faults`."""
        file = _open(raw, self._location, self._data)
        if self._start is None:
            return file
        lexer, lines, number = make_lexer(self._data), split_lines(file.stream), file.line
        for first_line, record in islice(split_records(lines, lexer, number), self._start):
            number = first_line + len(record.splitlines())

        def report(line: int, text: bytes) -> None:
            if faults is not None:
                faults.on_unclosed_quote(line, text)
                faults.require_few(self._location.path)

        repair = QuoteRepair(lexer, len(_names_of_cells(file, self._data)), MAX_ROW_BYTES, report)
        return file._replace(stream=to_stream(join_chunks(repair.blank_lines(lines, number))), line=number)

    def _drop_faulty_rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows without a fault, and adds the others to the faults."""
        reasons = _find_invalid_text(batch, self._data.encoding or "utf-8")
        names = self._schema.names
        is_header = _equal_cells(batch, names) if len(names) > 1 else np.zeros(batch.num_rows, bool)
        reasons.update((int(row), "it repeats the header") for row in np.flatnonzero(is_header))
        if self._data.trailing_delimiter:
            is_filled = ~_equal_cells(batch.select([_TRAILING]), [""])
            reason = f"a cell behind the last of {len(names)} column(s)"
            reasons.update((int(row), reason) for row in np.flatnonzero(is_filled))
        for row, reason in reasons.items():
            self.faults.cells[self._num_parsed + row] = reason
        if not reasons:
            return batch
        is_valid = np.ones(batch.num_rows, bool)
        is_valid[list(reasons)] = False
        return batch.filter(pa.array(is_valid))

    def _to_rows(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        rows = _strip_cells(batch.select(self._schema.names), self._schema, self._data)
        notation = notation_of(self._data)
        return rows if notation is None else rewrite_columns(rows, notation, self._data.numbers)

    def _too_long_error(self) -> Exception:
        with self._location.open_stream() as raw:
            file = self._open(raw, None)
            records = split_records(split_lines(file.stream), make_lexer(self._data), file.line)
            line = next((line for line, text in records if len(text) >= MAX_ROW_BYTES // 2), file.line)
        problem = f"the row at line {line} is longer than {MAX_ROW_BYTES:,} bytes"
        options = ("quote", "delimiter", "encoding")
        return unreadable_error(self._location.path, problem, "shorter rows with closed quotes", options=options)

    def write_malformed(self, malformed: MalformedWriter) -> None:
        """Reads the section again, up to the last fault, for the line numbers and the text of malformed rows."""
        if not self.faults:
            return
        faults, name = self.faults, self._location.relative
        last_row, last_cell, num_parsed = max(faults.rows, default=0), max(faults.cells, default=-1), 0
        unclosed = sorted(faults.lines.items(), reverse=True)
        with self._location.open_stream() as raw:
            file, lexer = self._open(raw, None), make_lexer(self._data)
            records = split_records(split_lines(file.stream), lexer, file.line)
            for number, (line, text) in enumerate(records, 1):
                while unclosed and unclosed[-1][0] < line:
                    unclosed_line, (unclosed_text, reason) = unclosed.pop()
                    malformed.add(name, unclosed_line, printable_text(unclosed_text), reason)
                if number in faults.rows:
                    row_reason = faults.rows[number]
                else:
                    row_reason = faults.cells.get(num_parsed)
                    num_parsed += 1
                if row_reason is not None:
                    num_lines = text.rstrip(b"\r\n").count(b"\n") + 1
                    row_reason += f"; quotes make one row of {num_lines:,} lines" if num_lines > 1 else ""
                    row_reason += (
                        f"; check its quotes ({lexer.quote.decode()})" if lexer.count_cells(text) is None else ""
                    )
                    malformed.add(name, line, printable_text(text), row_reason)
                if number >= last_row and num_parsed > last_cell and not unclosed:
                    return
        for unclosed_line, (unclosed_text, reason) in reversed(unclosed):
            malformed.add(name, unclosed_line, printable_text(unclosed_text), reason)


def _names_of_cells(file: _OpenFile, data: DataSource) -> list[str]:
    return [*file.names, _TRAILING] if data.trailing_delimiter else file.names


def _parse(file: _OpenFile, data: DataSource, faults: Faults) -> Iterator[pa.RecordBatch]:
    quote = '"' if data.quote is None else data.quote
    missing = list(data.missing_texts)
    names = _names_of_cells(file, data)
    try:
        reader = pcsv.open_csv(
            pa.PythonFile(file.stream, mode="r"),
            # One thread, since Arrow gives the numbers of rows to one thread only. It is as fast.
            read_options=pcsv.ReadOptions(column_names=names, use_threads=False, block_size=MAX_ROW_BYTES),
            parse_options=pcsv.ParseOptions(
                delimiter=data.delimiter or ",",
                quote_char=quote or False,
                escape_char=data.escape or False,
                newlines_in_values=True,
                invalid_row_handler=faults.on_invalid_row,
            ),
            convert_options=pcsv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                null_values=list(data.unquoted_missing or ([] if data.strip else missing)),
                strings_can_be_null=True,
                quoted_strings_can_be_null=not data.unquoted_missing,
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as failure:
        if "Empty CSV file" in str(failure):
            return
        raise
    yield from reader


def _has_lines(batch: pa.RecordBatch) -> bool:
    """Whether a cell has a line feed."""
    buffers = (column.buffers()[2] for column in batch.columns)
    return any(_LINE_FEED.search(buffer) is not None for buffer in buffers if buffer is not None)


def _equal_cells(batch: pa.RecordBatch, texts: list[str]) -> np.ndarray:
    """Returns for each row whether its cells, without white space around them, are `texts`. Null is an empty text."""
    is_equal = np.ones(batch.num_rows, bool)
    for column, text in zip(batch.columns, texts, strict=False):
        if not is_equal.any():
            break
        trimmed = pc.ascii_trim_whitespace(column)
        is_equal &= pc.fill_null(pc.equal(trimmed, text), text == "").to_numpy(zero_copy_only=False)
    return is_equal


def _find_invalid_text(batch: pa.RecordBatch, encoding: str) -> dict[int, str]:
    """Returns a reason for each row that is not completely UTF-8, by index."""
    reasons: dict[int, str] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            for row, cell in enumerate(column.cast(pa.binary()).to_pylist()):
                if cell is not None and not _is_utf8(cell):
                    reasons.setdefault(row, f"bytes in column {name} that are not {encoding}")
    return reasons


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _strip_cells(batch: pa.RecordBatch, schema: pa.Schema, data: DataSource) -> pa.RecordBatch:
    if not (data.strip or data.unquoted_missing):
        return batch
    missing = pa.array(data.missing_texts, pa.string())
    columns = []
    for column in batch.columns:
        cells = pc.ascii_trim_whitespace(column) if data.strip else column
        is_missing = pc.is_in(cells, missing)
        columns.append(pc.if_else(is_missing, pa.scalar(None, pa.string()), cells))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
