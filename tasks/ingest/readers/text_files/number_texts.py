"""Rewrites numbers in other notations, such as `1.234,50 €`, as texts that casting reads: `1234.50`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers.base import unreadable_error

_SPACES = " \u00a0\u2009\u202f"  # between groups of digits, spaces of all widths are written alike
_APOSTROPHES = "'\u2019"
_MINUS = "\u2212"
_SPACE = rf"[\s{_SPACES}]"


class NumberNotation(NamedTuple):
    """How numbers are written: the decimal separator, the separator of groups of digits, and texts around them."""

    decimal: str = "."
    thousands: str = ""
    units: tuple[str, ...] = ()

    @property
    def pattern(self) -> str:
        """The regular expression of a complete cell with a number."""
        return self.pattern_with("|".join(map(re.escape, self.units)))

    def pattern_with(self, units: str) -> str:
        """The regular expression of a complete cell, with a text before or behind the number that matches `units`.

        An integer part has no leading zeros, so codes do not match. The first group of digits has one to three, the
        last one three; those between may have two, as in India.
        """
        before = rf"(?:(?:{units}){_SPACE}*)?" if units else ""
        behind = rf"(?:{_SPACE}*(?:{units}))?" if units else ""
        integer = "0|[1-9][0-9]*"
        if self.thousands:
            separator = self.thousands_pattern
            integer = rf"[1-9][0-9]{{0,2}}(?:{separator}[0-9]{{2,3}})*{separator}[0-9]{{3}}|{integer}"
        decimal = re.escape(self.decimal)
        number = rf"(?:(?:{integer})(?:{decimal}[0-9]*)?|{decimal}[0-9]+)(?:[eE][+-]?[0-9]{{1,4}})?"
        signed = rf"{before}(?:[+{_MINUS}-]{_SPACE}*)?{before}{number}{behind}"
        in_accounts = rf"{before}\({before}{number}{behind}\){behind}|{before}{number}-{behind}"
        return rf"^{_SPACE}*(?:{signed}|{in_accounts}){_SPACE}*$"

    @property
    def thousands_pattern(self) -> str:
        """The regular expression of the separator of groups."""
        characters = next((group for group in (_SPACES, _APOSTROPHES) if self.thousands in group), self.thousands)
        return f"[{''.join(map(re.escape, characters))}]"


def notation_of(data: DataSource) -> NumberNotation | None:
    """Returns the notation that the options state; None if they state none."""
    if data.decimal is None and data.thousands is None and data.units is None:
        return None
    return NumberNotation(data.decimal or ".", data.thousands or "", data.units or ())


def require_number_columns(names: Sequence[str], data: DataSource, path: str) -> None:
    """Raises DataMissing where the option `numbers` names a column that does not exist."""
    unknown = [name for name in data.numbers or () if name not in names]
    if unknown:
        problem = f"numbers: there is no column {', '.join(unknown)}"
        raise unreadable_error(path, problem, f"some of {', '.join(names)}", options=("numbers",))


def rewrite_numbers(texts: pa.Array, notation: NumberNotation) -> pa.Array:
    """Returns the texts with a decimal point and digits in place of numbers in `notation`; other texts stay.

    Parentheses and a minus sign behind a number mean a negative number, as in accounts.
    """
    is_number = pc.match_substring_regex(texts, notation.pattern)
    numbers = texts
    for unit in notation.units:
        numbers = pc.replace_substring(numbers, unit, "")
    numbers = pc.replace_substring_regex(numbers, _SPACE, "")
    numbers = pc.replace_substring(numbers, _MINUS, "-")
    numbers = pc.replace_substring_regex(numbers, r"^(?:\((.*)\)|(.*)-)$", r"-\1\2")
    if notation.thousands:
        numbers = pc.replace_substring_regex(numbers, notation.thousands_pattern, "")
    if notation.decimal != ".":
        numbers = pc.replace_substring(numbers, notation.decimal, ".")
    return pc.if_else(pc.fill_null(is_number, False), numbers, texts)


def rewrite_columns(batch: pa.RecordBatch, notation: NumberNotation, columns: Sequence[str] | None) -> pa.RecordBatch:
    """Returns the batch with the numbers of `columns` rewritten; of all columns for None."""
    arrays = [
        rewrite_numbers(column, notation) if columns is None or name in columns else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)
