"""Profiles columns batch by batch: how many values of which type and between which limits, whatever the batches."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.odcs.base import LogicalType
from bloomery.data_contracts.recipe_sections.source_paths import SUFFIXES
from bloomery.data_contracts.validation.casting import cast_column, find_uncastable
from bloomery.tasks.scaffolding.profiling.column_sums import MAX_COUNTED_VALUES, Range, ValueCounter
from bloomery.tasks.scaffolding.profiling.date_inference import (
    CUT_NOTE,
    MIDNIGHT_NOTE,
    DateShapes,
    FormatCounter,
    InferredFormat,
)

# Texts that mark a missing value: the first in every column but the label, the others only where the rest of the column
# is no text.
CLEAR_MARKERS = (
    *("", "#N/A", "?", "N/A", "NULL", "Null", "NaN", "NaT", "<NA>", "\\N", "n/a", "nan", "null"),
    *("#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!"),
)
MARKERS = (
    *(*CLEAR_MARKERS, "-", "--", ".", "*", "NA", "N.A.", "None", "NONE", "na", "none", "nil"),
    *("missing", "Missing", "unknown", "Unknown", "0000-00-00", "0000-00-00 00:00:00"),
)
_ROWS_PER_INVALID = 200  # one text in so many may be of another type than the rest of its column
_ROWS_PER_INVALID_BOOLEAN = 1_000  # another text among truths is rather a third category than an error
_FEW_INVALID = 2  # texts of another type that are tolerated in a small source, too
_MAX_CODES = 30  # distinct numbers that may be codes: then a text that repeats is a code, too
_MAX_EXAMPLES = 3
_INFINITE = r"(?i)^[+-]?inf(inity)?$"  # no number of a contract, but written by software that writes numbers
_ROWS_PER_NO_DATE = 100  # as above for dates, which other texts are seldom mistaken for; one text may always be none
_MIN_DATES_PER_OTHER = 20

_ARROW_TYPES: dict[LogicalType, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
}
# Types that a text may have, the narrowest first. The patterns are stricter than casting, so that a code with leading
# zeros stays text, and a whole number with a point stays a number.
_STRICT_PATTERNS: dict[LogicalType, str] = {
    "boolean": r"(?i)^(true|false)$",
    "integer": r"^(0|-?[1-9][0-9]{0,17})$",
    "number": r"^[+-]?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$",
    "date": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    "timestamp": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T]",
}
_PHYSICAL_TYPES = {name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")} | {
    "float": "float32"
}
_NAN = "NaN"
_MIDNIGHT = r"[ T]00:00(:00([.,]0+)?)?( ?(Z|UTC|GMT|[+-][0-9:]+))?$"
_TIMES = "yyyy-MM-dd'T'HH:mm:ss[XXX]"
_NANOSECONDS = "yyyy-MM-dd'T'HH:mm:ss[.SSSSSSSSS][XXX]"
_DECIMAL_COMMA = r"^[+-]?[0-9]+,[0-9]+$"
_MEDIA_FILE = rf"(?i).({'|'.join(map(re.escape, (*SUFFIXES['images'], *SUFFIXES['audio'], '.mp3', '.flac')))})$"


class ColumnStatistics(NamedTuple):
    """The sums over all batches of one column. `value_counts` is None where there are too many distinct values.

    `missing` are the texts that mark a missing value. `date_format` says how dates are written, where not in ISO 8601.
    """

    logical_type: LogicalType
    num_missing: int
    num_invalid: int
    value_counts: Counter[Any] | None
    may_be_unique: bool
    min_distinct: int = MAX_COUNTED_VALUES + 1
    element_type: LogicalType | None = None
    physical_type: str | None = None
    minimum: int | float | None = None
    maximum: int | float | None = None
    min_length: int | None = None
    max_length: int | None = None
    length_counts: tuple[tuple[int, int], ...] = ()
    has_decimal_commas: bool = False
    names_files: bool = False
    missing: tuple[str, ...] = ()
    date_format: str | None = None
    date_notes: tuple[str, ...] = ()
    invalid_examples: tuple[str, ...] = ()


def max_invalid_cells(num_texts: int) -> int:
    """Returns how many of the texts of a column may be of another type than the rest."""
    return max(num_texts // _ROWS_PER_INVALID, min(num_texts // 20, _FEW_INVALID))


class ColumnProfiler(Protocol):
    """Profiles one column from its batches."""

    def add(self, column: pa.Array) -> None: ...

    def candidate_formats(self) -> list[InferredFormat]:
        """Returns the formats that the dates of this column may have, to be counted in a second pass."""
        ...

    def statistics(self, *, is_label: bool, date_format: FormatCounter | None) -> ColumnStatistics:
        """Returns the statistics. `date_format` is the candidate that fits best."""
        ...


class TextColumnProfiler:
    """Profiles a column of text: its texts, and which types they could have.

    In a source with types (`is_typed`) a text may only be a text or a date, since no number there is written as one.
    """

    def __init__(self, num_rows: int, *, is_typed: bool = False) -> None:
        self._max_invalid = max_invalid_cells(num_rows)
        self._max_invalid_booleans = num_rows // _ROWS_PER_INVALID_BOOLEAN
        self._examples: dict[LogicalType, dict[str, None]] = {}  # texts of another type, the first ones
        self._num_infinite = 0
        types = () if is_typed else tuple(_STRICT_PATTERNS)
        self._num_invalid: dict[LogicalType, int] = dict.fromkeys(types, 0)
        self._ranges = {logical_type: Range() for logical_type in types}
        self._lengths = Range()
        self._values = ValueCounter()
        self._markers: Counter[str] = Counter()
        self._max_no_dates = max(num_rows // _ROWS_PER_NO_DATE, 1)
        self._dates = DateShapes(self._max_no_dates)
        self._are_midnights = True
        self._num_null = self._num_texts = self._num_commas = self._num_files = 0

    def add(self, column: pa.Array) -> None:
        distinct = pc.value_counts(column)
        texts, counts = distinct.field("values"), distinct.field("counts").to_numpy()
        self._num_null += column.null_count
        is_marker = pc.is_in(texts, pa.array(MARKERS)).to_numpy(zero_copy_only=False)
        for index in np.flatnonzero(is_marker):
            self._markers[texts[int(index)].as_py()] += int(counts[index])
        is_text = ~is_marker & texts.is_valid().to_numpy(zero_copy_only=False)
        texts, counts = texts.filter(pa.array(is_text)), counts[is_text]
        self._num_texts += int(counts.sum())
        self._values.add(texts, counts)
        self._lengths.add(pc.utf8_length(texts))
        self._num_commas += int(counts[_matches(texts, _DECIMAL_COMMA)].sum())
        self._num_files += int(counts[_matches(texts, _MEDIA_FILE)].sum())
        if self._dates.are_dates:
            self._dates.add(*_reduce_iso(texts, counts))
        self._are_midnights = self._are_midnights and bool(_matches(texts, _MIDNIGHT).all())
        self._test_types(texts, counts)

    def _test_types(self, texts: pa.Array, counts: np.ndarray) -> None:
        """Drops the types that too many of the texts do not have."""
        is_infinite = _matches(texts, _INFINITE)
        self._num_infinite += int(counts[is_infinite].sum())
        for logical_type in list(self._num_invalid):
            values, uncastable = cast_column(texts, _ARROW_TYPES[logical_type])
            is_valid = _matches(texts, _STRICT_PATTERNS[logical_type]) & ~uncastable.to_numpy(zero_copy_only=False)
            is_numeric = logical_type in ("integer", "number")
            is_invalid = ~is_valid & ~is_infinite if is_numeric else ~is_valid
            self._num_invalid[logical_type] += int(counts[is_invalid].sum())
            max_invalid = self._max_invalid_booleans if logical_type == "boolean" else self._max_invalid
            if self._num_invalid[logical_type] > max_invalid:
                del self._num_invalid[logical_type]
                continue
            examples = self._examples.setdefault(logical_type, {})
            examples.update(dict.fromkeys(texts.filter(pa.array(~is_valid)).to_pylist()[:_MAX_EXAMPLES]))
            if is_numeric:
                self._ranges[logical_type].add(values.filter(pa.array(is_valid)))

    @property
    def _strict_type(self) -> LogicalType:
        possible = [
            logical_type for logical_type, num in self._num_invalid.items() if self._is_possible(logical_type, num)
        ]
        return min(possible, key=lambda logical_type: self._num_invalid[logical_type]) if possible else "string"

    def _is_possible(self, logical_type: LogicalType, num_invalid: int) -> bool:
        """Whether few enough of the texts are of another type, counting none of the missing cells."""
        if logical_type in ("integer", "number"):
            if self._num_infinite + num_invalid >= self._num_texts:
                return False
            counts = self._values.counts
            if counts is not None and len(counts) <= _MAX_CODES and num_invalid:
                repeated = [text for text in self._examples[logical_type] if counts[text] > 1]
                if any(re.match(_INFINITE, text) is None for text in repeated):
                    return False
        return num_invalid <= max_invalid_cells(self._num_texts) and num_invalid < self._num_texts

    def _count_invalid(self, logical_type: LogicalType) -> int:
        num_infinite = self._num_infinite if logical_type in ("integer", "number") else 0
        return self._num_invalid.get(logical_type, 0) + num_infinite

    def candidate_formats(self) -> list[InferredFormat]:
        is_open = self._strict_type == "string" or (self._strict_type == "timestamp" and self._are_midnights)
        return self._dates.candidates() if is_open else []

    def statistics(self, *, is_label: bool, date_format: FormatCounter | None) -> ColumnStatistics:
        logical_type = self._strict_type
        date_type = None if is_label else self._date_type(date_format)
        if date_type is not None and date_format is not None:
            logical_type = date_type
            num_invalid, inferred = date_format.num_invalid, date_format.inferred
        else:
            num_invalid, inferred = self._count_invalid(logical_type), None
        missing = self._missing(logical_type, is_label=is_label)
        kept_markers = Counter({text: num for text, num in self._markers.items() if text not in missing})
        counts = self._values.counts
        if counts is not None and logical_type in ("integer", "number"):
            counts = Counter(
                {text: num for text, num in counts.items() if re.match(_STRICT_PATTERNS[logical_type], text)}
            )
        value_counts = None if counts is None else counts + kept_markers
        lengths = [*map(len, kept_markers), *filter(None, (self._lengths.minimum, self._lengths.maximum))]
        value_range = self._ranges.get(logical_type, Range())
        return ColumnStatistics(
            logical_type=logical_type,
            num_missing=self._num_null + sum(self._markers[text] for text in missing),
            num_invalid=num_invalid,
            value_counts=value_counts if value_counts is None or len(value_counts) <= MAX_COUNTED_VALUES else None,
            may_be_unique=self._values.may_be_unique and all(num == 1 for num in kept_markers.values()),
            minimum=value_range.minimum,
            maximum=value_range.maximum,
            min_length=min(lengths, default=None),
            max_length=max(lengths, default=None),
            has_decimal_commas=logical_type == "string" and self._num_commas > 0.9 * max(self._num_texts, 1),
            names_files=logical_type == "string" and self._num_files > 0.9 * max(self._num_texts, 1),
            missing=missing,
            date_format=None if inferred is None else inferred.date_format.pattern,
            date_notes=() if inferred is None else self._date_notes(inferred, logical_type),
            invalid_examples=tuple(self._examples.get(logical_type, {}))[:_MAX_EXAMPLES],
        )

    def _date_notes(self, inferred: InferredFormat, logical_type: LogicalType) -> tuple[str, ...]:
        is_cut_to_dates = logical_type == "date" and inferred.date_format.has_time
        return (*inferred.ambiguity, *inferred.notes, *((MIDNIGHT_NOTE,) if is_cut_to_dates else ()))

    def _date_type(self, date_format: FormatCounter | None) -> Literal["date", "timestamp"] | None:
        """Returns the type of texts that have a format of their own, or are times at midnight; else None."""
        if date_format is None or date_format.num_invalid > min(
            self._max_no_dates, self._num_texts // _MIN_DATES_PER_OTHER
        ):
            return None
        if date_format.are_midnights:
            return "date"
        return "timestamp" if self._strict_type == "string" else None

    def _missing(self, logical_type: LogicalType, *, is_label: bool) -> tuple[str, ...]:
        """Returns the texts of the column that mark a missing value.

        A class may have such a name; and where a column has several such texts and no other, they tell rows apart.
        """
        vague_markers = set(self._markers) - set(CLEAR_MARKERS)
        if logical_type != "string":
            markers: tuple[str, ...] = MARKERS
        elif is_label:
            markers = ("",)
        else:
            markers = CLEAR_MARKERS if self._num_texts or len(vague_markers) > 1 else MARKERS
        return tuple(sorted(text for text in self._markers if text in markers))


def _reduce_iso(texts: pa.Array, counts: np.ndarray) -> tuple[list[str], list[int]]:
    """Returns the texts and their numbers of rows, with one text of zeros for all texts like ISO 8601 of one shape.

    Of these the shape says all, and a column of times has as many texts as rows.
    """
    is_iso = _matches(texts, r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T].*)?$")
    zeros = pc.replace_substring_regex(texts.filter(pa.array(is_iso)), "[0-9]", "0").dictionary_encode()
    sums = np.bincount(zeros.indices.to_numpy(), counts[is_iso], len(zeros.dictionary)).astype(int)
    others = texts.filter(pa.array(~is_iso)).to_pylist()
    return [*zeros.dictionary.to_pylist(), *others], [*sums.tolist(), *counts[~is_iso].tolist()]


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False).astype(bool)


class TypedColumnProfiler:
    """Profiles a column of a source with types. A NaN marks a missing value; times may be finer than microseconds."""

    def __init__(self, logical_type: LogicalType) -> None:
        self._logical_type: LogicalType = logical_type
        self._range, self._lengths, self._values = Range(), Range(), ValueCounter()
        self._num_missing = self._num_invalid = self._num_nan = 0
        self._examples: list[str] = []
        self._is_finer = False
        self._are_midnights = True

    def add(self, column: pa.Array) -> None:
        self._num_missing += column.null_count
        if pa.types.is_null(column.type):
            return
        present = column.drop_null()
        if pa.types.is_float16(present.type):
            present = present.cast(pa.float32())
        if pa.types.is_floating(present.type):
            is_nan = pc.is_nan(present)
            self._num_nan += is_nan.true_count
            present = present.filter(pc.invert(is_nan))
        if pa.types.is_timestamp(present.type) and present.type.unit == "ns":
            present = self._cut(present)
        if self._logical_type in _ARROW_TYPES:
            uncastable = find_uncastable(present, _ARROW_TYPES[self._logical_type])
            self._num_invalid += uncastable.true_count
            if self._logical_type in ("integer", "number"):
                invalid = present.filter(uncastable).slice(0, _MAX_EXAMPLES - len(self._examples))
                self._examples += map(str, invalid.to_pylist())
            present = present.filter(pc.invert(uncastable))
        if self._logical_type == "integer" and pa.types.is_floating(present.type):
            present = present.cast(pa.int64())
        if pa.types.is_timestamp(present.type):
            self._are_midnights = self._are_midnights and not find_uncastable(present, pa.date32()).true_count
        distinct = pc.value_counts(present)
        self._values.add(distinct.field("values"), distinct.field("counts").to_numpy())
        if self._logical_type in ("integer", "number"):
            self._range.add(present)
        elif self._logical_type == "string":
            self._lengths.add(pc.utf8_length(present))

    def _cut(self, moments: pa.Array) -> pa.Array:
        """Returns times in microseconds, and notes whether digits were cut."""
        moments_us = moments.cast(pa.timestamp("us", moments.type.tz), safe=False)
        self._is_finer = self._is_finer or pc.any(pc.not_equal(moments_us.cast(moments.type), moments)).as_py() is True
        return moments_us

    def candidate_formats(self) -> list[InferredFormat]:
        return []

    def statistics(self, *, is_label: bool, date_format: FormatCounter | None) -> ColumnStatistics:
        is_date = self._logical_type == "timestamp" and self._are_midnights and not self._is_finer
        pattern, note = (_NANOSECONDS, CUT_NOTE) if self._is_finer else (_TIMES, MIDNIGHT_NOTE)
        return ColumnStatistics(
            logical_type="date" if is_date else self._logical_type,
            num_missing=self._num_missing + self._num_nan,
            num_invalid=self._num_invalid,
            value_counts=self._values.counts,
            may_be_unique=self._values.may_be_unique,
            minimum=self._range.minimum,
            maximum=self._range.maximum,
            min_length=self._lengths.minimum,
            max_length=self._lengths.maximum,
            invalid_examples=tuple(self._examples),
            missing=(_NAN,) if self._num_nan else (),
            date_format=pattern if self._is_finer or is_date else None,
            date_notes=(note,) if self._is_finer or is_date else (),
        )


class ArrayColumnProfiler:
    """Profiles a column of arrays. A row is invalid where one of its elements is missing or of another type."""

    def __init__(self, element_type: LogicalType, arrow_type: pa.DataType) -> None:
        self._element_type: LogicalType = element_type
        self._physical_type = _PHYSICAL_TYPES.get(str(arrow_type))
        self._range = Range()
        self._lengths: Counter[int] = Counter()
        self._num_missing = self._num_invalid = 0

    def add(self, column: pa.Array) -> None:
        self._num_missing += column.null_count
        present = column.drop_null()
        lengths = pc.value_counts(pc.list_value_length(present))
        pairs = zip(lengths.field("values").to_pylist(), lengths.field("counts").to_pylist(), strict=True)
        self._lengths.update(dict(pairs))
        elements, rows = pc.list_flatten(present), pc.list_parent_indices(present)
        is_invalid = elements.is_null()
        if self._element_type in _ARROW_TYPES:
            is_invalid = pc.or_(is_invalid, find_uncastable(elements, _ARROW_TYPES[self._element_type]))
        if is_invalid.true_count:
            self._num_invalid += len(pc.unique(rows.filter(is_invalid)))
        if self._element_type in ("integer", "number"):
            self._range.add(elements.filter(pc.invert(is_invalid)) if is_invalid.true_count else elements)

    def candidate_formats(self) -> list[InferredFormat]:
        return []

    def statistics(self, *, is_label: bool, date_format: FormatCounter | None) -> ColumnStatistics:
        num_empty = self._lengths.pop(0, 0) if len(self._lengths) > 1 else 0  # a sequence has at least one step
        return ColumnStatistics(
            logical_type="array",
            num_missing=self._num_missing,
            num_invalid=self._num_invalid + num_empty,
            value_counts=None,
            may_be_unique=False,
            element_type=self._element_type,
            physical_type=self._physical_type,
            minimum=self._range.minimum,
            maximum=self._range.maximum,
            min_length=min(self._lengths, default=None),
            max_length=max(self._lengths, default=None),
            length_counts=tuple(sorted(self._lengths.items())),
        )
