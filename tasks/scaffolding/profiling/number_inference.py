"""Infers in which notation the numbers of a text source are written: separators, and units such as $ and %.

One notation is inferred for the whole source, since a file has one writer, and the columns that need it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches, row_group_size_of
from bloomery.tasks.ingest.readers.text_files.number_texts import NumberNotation, rewrite_columns
from bloomery.tasks.scaffolding.profiling.column_profiles import MARKERS, max_invalid_cells

_CODES = "EUR|USD|GBP|CHF|JPY|CNY|INR|AUD|CAD|NZD|SEK|NOK|DKK|PLN|CZK|HUF|RUB|UAH|TRY|BRL|MXN|ZAR|KRW|SGD|HKD|ILS"
_UNITS = rf"(?:US|A|C|HK|NZ|S)?\$|R\$|[\p{{Sc}}%‰]|{_CODES}|Rs\.?|kr\.?|zł|Kč|Ft|руб\.?"
_PERCENT = ("%", "‰")
_UNIT_OF_NUMBER = (
    rf"^[\s\x{{a0}}]*[(+-]?[\s\x{{a0}}]*(?P<before>{_UNITS})?[\s\x{{a0}}]*[(+\x{{2212}}-]?[0-9.,'\x{{2019}}\x{{a0}}"
    rf"\x{{2009}}\x{{202f}} ]*[0-9][0-9.,]*[)-]?[\s\x{{a0}}]*(?P<behind>{_UNITS})?[\s\x{{a0}}]*\)?$"
)
_GROUPED_BY_POINT = r"^[+-]?[1-9][0-9]{0,2}\.[0-9]{3}$"
_MIN_GROUPED = 10  # texts such as 1.234 in a column
_MAX_EXAMPLES = 50  # texts of a column
PLAIN = NumberNotation()
_CASTABLE = r"^\s*[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?\s*$"
# The simplest first: of notations that fit equally well, the first is chosen.
_NOTATIONS = (
    *(PLAIN, NumberNotation(","), NumberNotation(".", ","), NumberNotation(",", "."), NumberNotation(".", " ")),
    *(NumberNotation(",", " "), NumberNotation(".", "'"), NumberNotation(",", "'")),
)
_COMMA, _GROUPS_BY_COMMA = NumberNotation(","), NumberNotation(".", ",")


class InferredNumbers(NamedTuple):
    """The options that read the numbers, and the reasons for them."""

    options: dict[str, Any]
    notes: dict[str, str]


class _ColumnCounts:
    """How many texts of a column are numbers in each notation, and how many have which unit."""

    def __init__(self, notations: Sequence[NumberNotation]) -> None:
        self.num_texts = self.num_plain = self.num_points = 0
        self.num_groups = self.num_small = self.num_large = 0  # such as 1.234, 999 and 1000
        self.num_matches = dict.fromkeys(notations, 0)
        self.units: Counter[str] = Counter()
        self.examples: dict[NumberNotation, dict[str, None]] = {}  # texts that a notation reads, and that are not plain

    def add(self, column: pa.Array) -> None:
        distinct = pc.value_counts(column.drop_null())
        texts, counts = distinct.field("values"), distinct.field("counts").to_numpy()
        is_text = pc.invert(
            pc.or_(pc.is_in(texts, pa.array(["", *MARKERS])), pc.match_substring_regex(texts, r"^\s*$"))
        )
        texts, counts = texts.filter(is_text), counts[is_text.to_numpy(zero_copy_only=False)]
        self.num_texts += int(counts.sum())
        is_plain = _matches(texts, _CASTABLE)
        self.num_plain += int(counts[is_plain].sum())
        self.num_points += int(counts[is_plain & _matches(texts, r"\.")].sum())
        self.num_groups += int(counts[_matches(texts, _GROUPED_BY_POINT)].sum())
        self.num_small += int(counts[_matches(texts, r"^[+-]?[0-9]{1,3}$")].sum())
        self.num_large += int(counts[_matches(texts, r"^[+-]?[0-9]{4,}$")].sum())
        for notation in self.num_matches:
            is_number = (
                is_plain if notation == PLAIN and is_plain.all() else _matches(texts, notation.pattern_with(_UNITS))
            )
            self.num_matches[notation] += int(counts[is_number].sum())
            changed = np.flatnonzero(is_number & ~is_plain)
            examples = self.examples.setdefault(notation, {})
            for index in changed[: _MAX_EXAMPLES - len(examples)]:
                examples[texts[int(index)].as_py()] = None
        if not is_plain.all():
            parts = pc.extract_regex(texts, _UNIT_OF_NUMBER)
            for part in (parts.field("before"), parts.field("behind")) if isinstance(parts, pa.StructArray) else ():
                for unit, count in zip(part.to_pylist(), counts.tolist(), strict=True):
                    self.units.update({unit: count} if unit else {})

    @property
    def is_grouped_by_points(self) -> bool:
        """Whether points separate thousands: numbers have three digits behind one, or at most three digits."""
        has_both = self.num_groups >= _MIN_GROUPED and self.num_small > 0
        return has_both and self.num_groups == self.num_points and not self.num_large

    def is_numeric(self, notation: NumberNotation) -> bool:
        """Whether nearly all texts are numbers in `notation`, in one unit."""
        if notation.decimal == "." and self.is_grouped_by_points:
            return False
        max_invalid = max_invalid_cells(self.num_texts)
        matches, units = self.num_matches[notation], self.common_units
        num_other = self.units.total() - sum(self.units[unit] for unit in units)
        is_mixed = any(unit in _PERCENT for unit in units) and matches - self.units.total() > max_invalid
        return self.num_texts > 0 and self.num_texts - matches + num_other <= max_invalid and not is_mixed

    @property
    def common_units(self) -> tuple[str, ...]:
        """The most frequent unit, if there is one."""
        return tuple(unit for unit, _ in self.units.most_common(1))

    def needs(self, notation: NumberNotation) -> bool:
        """Whether this column must be read in `notation`."""
        has_groups_by_point = notation.thousands == "." and self.num_points > 0
        return self.is_numeric(notation) and (self.num_plain < self.num_matches[notation] or has_groups_by_point)


def without_notation(data: DataSource) -> DataSource:
    """Returns the data source that reads numbers as they are written, unless it names the columns to rewrite.

    Files of sequences are read as numbers from the start.
    """
    if data.numbers is not None or not data.has_text_cells:
        return data
    return data.model_copy(update={"decimal": None, "thousands": None, "units": None})


def rewrite_inferred_numbers(path: Path, data: DataSource) -> InferredNumbers:
    """Rewrites the numbers of the Parquet file `path`, which holds the texts of `data`, and returns their notation.

    What `data` says about the notation is kept. There are no options where all numbers are plain.
    """
    if not data.has_text_cells or data.numbers is not None:
        return InferredNumbers({}, {})
    inferred = _infer_numbers(path, data)
    if inferred.options:
        options = inferred.options
        notation = NumberNotation(options.get("decimal", "."), options.get("thousands", ""), options.get("units", ()))
        temporary = path.with_suffix(".numbers")
        with RowWriter(temporary, pq.read_schema(path), row_group_size_of(path)) as writer:
            for batch in read_batches(path):
                writer.write(rewrite_columns(batch, notation, options["numbers"]))
        temporary.replace(path)
    return inferred


def _infer_numbers(path: Path, data: DataSource) -> InferredNumbers:
    notations = _allowed_notations(data)
    schema = pq.read_schema(path)
    counts = {field.name: _ColumnCounts(notations) for field in schema if pa.types.is_string(field.type)}
    for batch in read_batches(path, list(counts)):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            counts[name].add(column)
    notation = _choose(list(counts.values()), notations, data.delimiter or ",")
    columns = [name for name, column_counts in counts.items() if column_counts.needs(notation)]
    if notation == PLAIN and not columns:  # every column of the usual notation is plain: another may be left
        others = [column for column in counts.values() if not column.is_numeric(PLAIN)]
        notation = _choose(others, notations, data.delimiter or ",")
        columns = [name for name, column_counts in counts.items() if column_counts.needs(notation)]
    if not columns:
        return InferredNumbers({}, {})
    units = dict.fromkeys(unit for name in columns for unit in counts[name].common_units)
    return _describe(notation, tuple(data.units or units), {name: counts[name] for name in columns})


def _allowed_notations(data: DataSource) -> tuple[NumberNotation, ...]:
    notations: tuple[NumberNotation, ...] = _NOTATIONS
    if data.decimal is not None:
        notations = tuple(notation for notation in notations if notation.decimal == data.decimal)
        notations = notations or (NumberNotation(data.decimal),)
    if data.thousands is not None:
        decimals = dict.fromkeys(notation.decimal for notation in notations)
        notations = tuple(NumberNotation(decimal, data.thousands) for decimal in decimals if decimal != data.thousands)
    return notations


def _choose(columns: list[_ColumnCounts], notations: Sequence[NumberNotation], delimiter: str) -> NumberNotation:
    """Returns the notation of most columns with numbers, and then of most cells; of equals, the simplest.

    Where groups of three digits behind commas could be either, a semicolon between cells means decimal commas.
    """
    scores = {
        notation: (
            sum(column.is_numeric(notation) for column in columns),
            sum(column.num_matches[notation] for column in columns if column.is_numeric(notation)),
        )
        for notation in notations
    }
    best = max(notations, key=lambda notation: scores[notation])
    is_ambiguous = best == _COMMA and scores.get(_GROUPS_BY_COMMA) == scores[_COMMA]
    return _GROUPS_BY_COMMA if is_ambiguous and delimiter != ";" else best


def _describe(notation: NumberNotation, units: tuple[str, ...], columns: dict[str, _ColumnCounts]) -> InferredNumbers:
    options: dict[str, Any] = {}
    notes: dict[str, str] = {}
    if notation.decimal != "." or not (notation.thousands or units):
        options["decimal"] = notation.decimal
        notes["decimal"] = _describe_example(columns, notation, notation.decimal)
    if notation.thousands:
        options["thousands"] = notation.thousands
        notes["thousands"] = _describe_example(columns, notation, notation.thousands)
    is_ambiguous = notation in (_COMMA, _GROUPS_BY_COMMA) and all(
        column.num_matches.get(_COMMA) == column.num_matches.get(_GROUPS_BY_COMMA) for column in columns.values()
    )
    if is_ambiguous and notation == _COMMA:
        notes["decimal"] += "; if the comma separates thousands, set `thousands` to it instead"
    elif is_ambiguous:
        notes["thousands"] += "; if the comma is a decimal comma, set `decimal` to it instead"
    if units:
        hint = "; 12% is read as 12, not as 0.12" if set(units) & set(_PERCENT) else ""
        options["units"] = units
        notes["units"] = f"{_describe_example(columns, notation, *units)}{hint}"
    options["numbers"] = tuple(columns)
    notes["numbers"] = "the columns with such numbers"
    return InferredNumbers(options, notes)


def _describe_example(columns: dict[str, _ColumnCounts], notation: NumberNotation, *signs: str) -> str:
    """Describes a number that has one of `signs`."""
    examples = [(name, text) for name, counts in columns.items() for text in counts.examples.get(notation, ())]
    name, text = next(
        (pair for pair in examples if any(sign in pair[1] for sign in signs)), (examples or [("", "")])[0]
    )
    return f"column {name} has numbers such as {text!r}"


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False).astype(bool)
