"""Finds where the rows of a delimited text begin, by the rules of Arrow's reader, and which quotes do not close."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

_MIN_SWALLOWED_LINES = 3  # lines that are each a complete row, and would be one together
_MIN_SWALLOWED_PAIRS = 5  # the same for rows of two cells, since a line of prose often has one comma


class Lexer(NamedTuple):
    """The three special characters of a dialect, each one byte; empty where there is none."""

    delimiter: bytes
    quote: bytes
    escape: bytes

    def is_open(self, line: bytes, was_open: bool) -> bool:
        """Whether a quote is open after `line`. A quote opens only at the start of a cell."""
        if not self.quote or self.quote not in line:
            return was_open
        if self.escape:
            return self._is_open_with_escapes(line, was_open)
        position, is_open, opening = 0, was_open, self.delimiter + self.quote
        if not was_open and line.startswith(self.quote):
            position, is_open = 1, True
        while True:
            position = line.find(self.quote if is_open else opening, position)
            if position < 0:
                return is_open
            if not is_open:
                position, is_open = position + 2, True
            elif line.startswith(self.quote, position + 1):
                position += 2
            else:
                position, is_open = position + 1, False

    def _is_open_with_escapes(self, line: bytes, was_open: bool) -> bool:
        quote, delimiter, escape = ord(self.quote), ord(self.delimiter), ord(self.escape)
        is_open, at_start, position = was_open, not was_open, 0
        while position < len(line):
            byte = line[position]
            if byte == escape:
                position += 1
                at_start = False
            elif is_open and byte == quote:
                is_doubled = line[position + 1 : position + 2] == self.quote
                is_open, position = is_doubled, position + is_doubled
            elif at_start and byte == quote:
                is_open, at_start = True, False
            else:
                at_start = not is_open and byte == delimiter
            position += 1
        return is_open

    def count_cells(self, record: bytes) -> int | None:
        """Returns the number of cells of a row; None if a quote stays open, or text follows one that closes."""
        text, position, num_cells = record.rstrip(b"\r\n"), 0, 1
        while True:
            if self.quote and text.startswith(self.quote, position):
                closing = _closing_pattern(self).match(text, position + 1)
                if closing is None:
                    return None
                position = closing.end()
                end = text.find(self.delimiter, position)
                if text[position : end if end >= 0 else None].strip(b" \t"):
                    return None
            else:
                end = text.find(self.delimiter, position)
            if end < 0:
                return num_cells
            num_cells, position = num_cells + 1, end + 1

    def strip_initial_spaces(self, line: bytes, was_open: bool) -> tuple[bytes, bool]:
        """Returns `line` without spaces between a delimiter and an opening quote, and whether a quote is open then.

        Where a space is the delimiter, any white space separates cells, as in aligned columns.
        """
        if self.delimiter == b" ":
            cells = _aligned_pattern(self).findall(line)
            return b" ".join(cells) + line[len(line.rstrip(b"\r\n")) :], False
        if not self.quote or (not was_open and self.quote not in line):
            return line, was_open
        spaces = bytes(character for character in b" \t" if character != ord(self.delimiter))
        pieces, position, is_open = [], 0, was_open
        while position < len(line):
            if is_open:
                closing = _closing_pattern(self).match(line, position)
                if closing is None:
                    break
                end, is_open = closing.end(), False
            else:
                text = line[position:].lstrip(spaces)
                if text.startswith(self.quote):
                    position, is_open = len(line) - len(text), True
                    pieces.append(self.quote)
                    position += 1
                    continue
                end = position
            end = line.find(self.delimiter, end)
            end = len(line) if end < 0 else end + 1
            pieces.append(line[position:end])
            position = end
        return b"".join([*pieces, line[position:]]), is_open


@lru_cache(maxsize=16)
def _closing_pattern(lexer: Lexer) -> re.Pattern[bytes]:
    """The pattern of the text inside of quotes up to the closing one. A doubled quote does not close."""
    quote, escape = re.escape(lexer.quote), re.escape(lexer.escape)
    escaped = rb"|%b." % escape if escape else b""
    return re.compile(rb"(?:[^%b%b]++|%b%b%b)*+%b" % (quote, escape, quote, quote, escaped, quote), re.DOTALL)


@lru_cache(maxsize=16)
def _aligned_pattern(lexer: Lexer) -> re.Pattern[bytes]:
    """The pattern of a cell between white space: a text in quotes or one without spaces."""
    quote = re.escape(lexer.quote)
    return re.compile((rb"%b(?:[^%b]|%b%b)*%b|" % ((quote,) * 5) if quote else b"") + rb"\S+")


def split_lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """Yields lines with their ends: a line feed, a carriage return or both."""
    return (piece for text in iter(stream.readline, b"") for piece in text.splitlines(keepends=True))


def split_records(lines: Iterator[bytes], lexer: Lexer, first_line: int) -> Iterator[tuple[int, bytes]]:
    """Yields each row that is not blank, with the number of its first line. A row may span lines in quotes."""
    record: list[bytes] = []
    start = number = first_line
    is_open = False
    for line in lines:
        if record or line.strip(b"\r\n"):
            start = start if record else number
            record.append(line)
            is_open = lexer.is_open(line, is_open)
            if not is_open:
                yield start, b"".join(record)
                record = []
        number += 1
    if record:
        yield start, b"".join(record)


class QuoteRepair(NamedTuple):
    """Finds lines in which a quote opens that does not close, and that would make one row of all lines behind it.

    `report` takes the number and the text of such a line.
    """

    lexer: Lexer
    num_cells: int
    max_bytes: int  # of a row
    report: Callable[[int, bytes], None]

    def blank_lines(self, lines: Iterator[bytes], first_line: int) -> Iterator[bytes]:
        """Yields `lines` with a blank line in place of each that is reported. The first has number `first_line`."""
        waiting: deque[bytes] = deque()
        number = first_line
        while True:
            line = waiting.popleft() if waiting else next(lines, None)
            if line is None:
                return
            if not self.lexer.is_open(line, False):
                yield line
                number += 1
                continue
            record, is_open = self._collect(line, waiting, lines)
            if is_open or self._is_swallowed(record):
                self.report(number, line)
                yield b"\n"
                waiting.extendleft(reversed(record[1:]))
                number += 1
            else:
                yield from record
                number += len(record)

    def _collect(self, line: bytes, waiting: deque[bytes], lines: Iterator[bytes]) -> tuple[list[bytes], bool]:
        """Returns the lines up to that in which the quote closes, and whether it is still open at their end."""
        record, size, is_open = [line], len(line), True
        while is_open and size <= self.max_bytes:
            following = waiting.popleft() if waiting else next(lines, None)
            if following is None:
                break
            record.append(following)
            size += len(following)
            is_open = self.lexer.is_open(following, True)
        return record, is_open

    def _is_swallowed(self, record: list[bytes]) -> bool:
        """Whether text follows the closing quote, or every line is a row of its own if the quotes are ignored."""
        if self.lexer.count_cells(b"".join(record)) is None:
            return True
        min_lines = _MIN_SWALLOWED_PAIRS if self.num_cells == 2 else _MIN_SWALLOWED_LINES
        if len(record) < min_lines or self.num_cells < 2:
            return False
        return all(line.count(self.lexer.delimiter) + 1 == self.num_cells for line in (record[0], record[-1])) and all(
            self.lexer.count_cells(line) == self.num_cells for line in record[1:-1]
        )
