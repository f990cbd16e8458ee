"""Finds where the rows of a delimited text begin, by the rules of Arrow's reader."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple


class Lexer(NamedTuple):
    """The three special characters of a dialect, each one byte; empty where there is none."""

    delimiter: bytes
    quote: bytes
    escape: bytes

    def is_open(self, line: bytes, was_open: bool) -> bool:
        """Whether a quote is open after `line`. A quote opens only at the start of a cell."""
        if not self.quote or self.quote not in line:
            return was_open
        quote, delimiter, escape = ord(self.quote), ord(self.delimiter), ord(self.escape) if self.escape else -1
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


def split_records(stream: io.BufferedReader, lexer: Lexer, first_line: int) -> Iterator[tuple[int, bytes]]:
    """Yields each row that is not blank, with the number of its first line. A row may span lines in quotes.

    A line ends with a line feed, a carriage return or both.
    """
    record: list[bytes] = []
    start = number = first_line
    is_open = False
    for line in (piece for text in iter(stream.readline, b"") for piece in text.splitlines(keepends=True)):
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
