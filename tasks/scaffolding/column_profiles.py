"""Profiles columns batch by batch: how many values of which type and between which limits, whatever the batches."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.odcs.base import LogicalType
from bloomery.data_contracts.validation.casting import cast_column, find_uncastable

MAX_COUNTED_VALUES = 2_000  # distinct values of a column that are counted one by one
# Texts that mark a missing value: the first in every column, the others only where the rest of the column is no text.
CLEAR_MARKERS = ("#N/A", "?", "N/A", "NULL", "NaN", "\\N", "n/a", "nan", "null")
MARKERS = (*CLEAR_MARKERS, "-", "--", ".", "NA", "None", "na", "none")
_ROWS_PER_INVALID = 1_000  # one text in so many may be of another type than the rest of its column

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
_DECIMAL_COMMA = r"^[+-]?[0-9]+,[0-9]+$"


class ColumnStatistics(NamedTuple):
    """The sums over all batches of one column. `value_counts` is None where there are too many distinct values."""

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


class ColumnProfiler(Protocol):
    """Profiles one column from its batches."""

    def add(self, column: pa.Array) -> None: ...

    def missing_markers(self) -> frozenset[str]:
        """Returns the texts of this column that mark a missing value."""
        ...

    def statistics(self, missing: frozenset[str]) -> ColumnStatistics:
        """Returns the statistics if the texts `missing` mark a missing value in the whole source."""
        ...


class _Range:
    """The smallest and the largest of the added values."""

    def __init__(self) -> None:
        self.minimum: Any = None
        self.maximum: Any = None

    def add(self, values: pa.Array) -> None:
        if len(values) > values.null_count:
            limits = pc.min_max(values).as_py()
            self.minimum = limits["min"] if self.minimum is None else min(self.minimum, limits["min"])
            self.maximum = limits["max"] if self.maximum is None else max(self.maximum, limits["max"])


class _ValueCounter:
    """Counts values one by one until there are too many, and notes whether each batch has each value once."""

    def __init__(self) -> None:
        self.counts: Counter[Any] | None = Counter()
        self.may_be_unique = True

    def add(self, values: pa.Array, counts: np.ndarray) -> None:
        self.may_be_unique = self.may_be_unique and bool((counts == 1).all())
        if self.counts is not None:
            if len(values) > MAX_COUNTED_VALUES:
                self.counts = None
                return
            self.counts.update(dict(zip(values.to_pylist(), counts.tolist(), strict=True)))
            if len(self.counts) > MAX_COUNTED_VALUES:
                self.counts = None


class TextColumnProfiler:
    """Profiles a column of a source without types: its texts, and which types they could have."""

    def __init__(self, num_rows: int) -> None:
        self._max_invalid = num_rows // _ROWS_PER_INVALID
        self._num_invalid: dict[LogicalType, int] = dict.fromkeys(_STRICT_PATTERNS, 0)
        self._ranges = {logical_type: _Range() for logical_type in _STRICT_PATTERNS}
        self._lengths = _Range()
        self._values = _ValueCounter()
        self._markers: Counter[str] = Counter()
        self._num_null = self._num_texts = self._num_commas = 0

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
        self._test_types(texts, counts)

    def _test_types(self, texts: pa.Array, counts: np.ndarray) -> None:
        """Drops the types that too many of the texts do not have."""
        for logical_type in list(self._num_invalid):
            values, uncastable = cast_column(texts, _ARROW_TYPES[logical_type])
            is_valid = _matches(texts, _STRICT_PATTERNS[logical_type]) & ~uncastable.to_numpy(zero_copy_only=False)
            self._num_invalid[logical_type] += int(counts[~is_valid].sum())
            if self._num_invalid[logical_type] > self._max_invalid:
                del self._num_invalid[logical_type]
            elif logical_type in ("integer", "number"):
                self._ranges[logical_type].add(values.filter(pa.array(is_valid)))

    @property
    def _logical_type(self) -> LogicalType:
        possible = [logical_type for logical_type, num in self._num_invalid.items() if num < self._num_texts]
        return min(possible, key=lambda logical_type: self._num_invalid[logical_type] > 0) if possible else "string"

    def missing_markers(self) -> frozenset[str]:
        markers = MARKERS if self._logical_type != "string" or not self._num_texts else CLEAR_MARKERS
        return frozenset(text for text in self._markers if text in markers)

    def statistics(self, missing: frozenset[str]) -> ColumnStatistics:
        logical_type = self._logical_type
        kept_markers = Counter({text: num for text, num in self._markers.items() if text not in missing})
        value_counts = None if self._values.counts is None else self._values.counts + kept_markers
        lengths = [*map(len, kept_markers), *filter(None, (self._lengths.minimum, self._lengths.maximum))]
        value_range = self._ranges.get(logical_type, _Range())
        num_kept = kept_markers.total()
        return ColumnStatistics(
            logical_type=logical_type,
            num_missing=self._num_null + sum(self._markers.values()) - num_kept,
            num_invalid=self._num_invalid.get(logical_type, 0) + (num_kept if logical_type != "string" else 0),
            value_counts=value_counts if value_counts is None or len(value_counts) <= MAX_COUNTED_VALUES else None,
            may_be_unique=self._values.may_be_unique and all(num == 1 for num in kept_markers.values()),
            minimum=value_range.minimum,
            maximum=value_range.maximum,
            min_length=min(lengths, default=None),
            max_length=max(lengths, default=None),
            has_decimal_commas=logical_type == "string" and self._num_commas > 0.9 * max(self._num_texts, 1),
        )


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False).astype(bool)


class TypedColumnProfiler:
    """Profiles a column of a source with types. A NaN is invalid, as in a contract."""

    def __init__(self, logical_type: LogicalType) -> None:
        self._logical_type: LogicalType = logical_type
        self._range, self._lengths, self._values = _Range(), _Range(), _ValueCounter()
        self._num_missing = self._num_invalid = 0

    def add(self, column: pa.Array) -> None:
        self._num_missing += column.null_count
        if pa.types.is_null(column.type):
            return
        present = column.drop_null()
        if self._logical_type in _ARROW_TYPES:
            uncastable = find_uncastable(present, _ARROW_TYPES[self._logical_type])
            self._num_invalid += uncastable.true_count
            present = present.filter(pc.invert(uncastable))
        distinct = pc.value_counts(present)
        self._values.add(distinct.field("values"), distinct.field("counts").to_numpy())
        if self._logical_type in ("integer", "number"):
            self._range.add(present)
        elif self._logical_type == "string":
            self._lengths.add(pc.utf8_length(present))

    def missing_markers(self) -> frozenset[str]:
        return frozenset()

    def statistics(self, missing: frozenset[str]) -> ColumnStatistics:
        return ColumnStatistics(
            logical_type=self._logical_type,
            num_missing=self._num_missing,
            num_invalid=self._num_invalid,
            value_counts=self._values.counts,
            may_be_unique=self._values.may_be_unique,
            minimum=self._range.minimum,
            maximum=self._range.maximum,
            min_length=self._lengths.minimum,
            max_length=self._lengths.maximum,
        )


class ArrayColumnProfiler:
    """Profiles a column of arrays. A row is invalid where one of its elements is missing or of another type."""

    def __init__(self, element_type: LogicalType, arrow_type: pa.DataType) -> None:
        self._element_type: LogicalType = element_type
        self._physical_type = _PHYSICAL_TYPES.get(str(arrow_type))
        self._range = _Range()
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

    def missing_markers(self) -> frozenset[str]:
        return frozenset()

    def statistics(self, missing: frozenset[str]) -> ColumnStatistics:
        return ColumnStatistics(
            logical_type="array",
            num_missing=self._num_missing,
            num_invalid=self._num_invalid,
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
