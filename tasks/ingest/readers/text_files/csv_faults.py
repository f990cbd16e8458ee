"""The malformed rows of one file: which, and why."""

from __future__ import annotations

import pyarrow.csv as pcsv

from bloomery.tasks.ingest.option_names import option_names
from bloomery.tasks.ingest.readers.base import unreadable_error

MAX_MALFORMED_ROWS = 100_000  # of one file: they are kept in memory until the file has been read
MAX_UNCLOSED_QUOTES = 1_000  # of one file: with more, the character is no quote


class Faults:
    """The faults of some rows of a file.

    `rows` are by number among all these rows, from 1, `cells` by index among the parsed ones, `lines` by line number.
    """

    def __init__(self, *, strip: bool, quote: str) -> None:
        self.rows: dict[int, str | None] = {}  # None for a line of white space, which is no fault
        self.cells: dict[int, str] = {}
        self.lines: dict[int, tuple[bytes, str]] = {}
        self.have_lines = False  # whether a malformed row spans lines
        self._strip = strip
        self._quote = quote

    def __bool__(self) -> bool:
        return any(self.rows.values()) or bool(self.cells) or bool(self.lines)

    def on_invalid_row(self, row: pcsv.InvalidRow) -> str:
        is_blank = self._strip and not row.text.strip()
        reason = f"{row.actual_columns} cell(s), where {row.expected_columns} are required"
        self.rows[row.number] = None if is_blank else reason
        self.have_lines = self.have_lines or "\n" in row.text.rstrip("\r\n")
        return "error" if self.are_too_many else "skip"

    def on_unclosed_quote(self, line: int, text: bytes) -> None:
        self.lines[line] = (text, f"a quote ({self._quote}) opens that does not close")

    @property
    def are_too_many(self) -> bool:
        return len(self.rows) + len(self.cells) > MAX_MALFORMED_ROWS or len(self.lines) > MAX_UNCLOSED_QUOTES

    def require_few(self, path: str) -> None:
        """Raises DataMissing if there are so many faults that the file is written in another way."""
        if len(self.lines) > MAX_UNCLOSED_QUOTES:
            problem = f"in more than {MAX_UNCLOSED_QUOTES:,} lines a quote ({self._quote}) opens that does not close, "
            problem += f"first in line {min(self.lines)}"
            required = f"closed quotes; {option_names('quote')} is empty if the character is no quote"
            raise unreadable_error(path, problem, required, options=("quote", "escape", "skip_initial_space"))
        if self.are_too_many:
            first = next((reason for reason in (*self.rows.values(), *self.cells.values()) if reason), "blank")
            problem = f"more than {MAX_MALFORMED_ROWS:,} lines are malformed; the first has {first}"
            options = ("delimiter", "quote", "escape", "encoding", "columns", "trailing_delimiter")
            raise unreadable_error(path, problem, "rows with a cell for each column", options=options)

    def select_first(self, num_parsed: int) -> tuple[Faults, int]:
        """Returns the faults of the first rows, of which `num_parsed` were parsed, and how many rows these are."""
        num_rows = 0
        for _ in range(num_parsed):
            num_rows += 1
            while num_rows in self.rows:
                num_rows += 1
        first = Faults(strip=self._strip, quote=self._quote)
        first.rows = {number: reason for number, reason in self.rows.items() if number <= num_rows}
        first.cells = {index: reason for index, reason in self.cells.items() if index < num_parsed}
        return first, num_rows
