"""Columns seen batch by batch: how many values of which kind, and between which limits, whatever the batches."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.odcs.columns import LogicalType
from bloomery.data_contracts.validation.casting import misfits, read_as

MAX_COUNTED_VALUES = 2_000  # different values of a column that are counted one by one
# Texts that mean that a value is missing: some always, others where the rest of the column is no text.
CLEAR_MARKERS = ("#N/A", "?", "N/A", "NULL", "NaN", "\\N", "n/a", "nan", "null")
MARKERS = (*CLEAR_MARKERS, "-", "--", ".", "NA", "None", "na", "none")
_UNFIT_SHARE = 1_000  # one text in so many may be of another kind than the rest of its column

_ARROW: dict[LogicalType, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
}
# Kinds that a text may be of, the narrowest first; more strictly than it is read, so that a code with zeros in front
# stays a text, and a whole number with a point stays a number.
_STRICT: dict[LogicalType, str] = {
    "boolean": r"(?i)^(true|false)$",
    "integer": r"^(0|-?[1-9][0-9]{0,17})$",
    "number": r"^[+-]?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$",
    "date": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    "timestamp": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T]",
}
_ELEMENTS = {name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")} | {
    "float": "float32"
}
_DECIMAL_COMMA = r"^[+-]?[0-9]+,[0-9]+$"


class ColumnStatistics(NamedTuple):
    """What the batches of one column came to. `values` is None where there are more than are counted."""

    kind: LogicalType
    num_missing: int
    num_unfit: int
    values: Counter[Any] | None
    may_be_unique: bool
    least_distinct: int = MAX_COUNTED_VALUES + 1
    element: LogicalType | None = None
    physical: str | None = None
    low: int | float | None = None
    high: int | float | None = None
    min_length: int | None = None
    max_length: int | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    is_decimal_comma: bool = False


class ColumnProfiler(Protocol):
    """One column as it is seen."""

    def add(self, column: pa.Array) -> None: ...

    def markers(self) -> frozenset[str]:
        """The texts of this column that mean null."""
        ...

    def figures(self, missing: frozenset[str]) -> ColumnStatistics:
        """What it came to, if the texts `missing` mean null in the whole source."""
        ...


class _Limits:
    """The least and the largest of what was added."""

    def __init__(self) -> None:
        self.low: Any = None
        self.high: Any = None

    def add(self, values: pa.Array) -> None:
        if len(values) > values.null_count:
            found = pc.min_max(values).as_py()
            self.low = found["min"] if self.low is None else min(self.low, found["min"])
            self.high = found["max"] if self.high is None else max(self.high, found["max"])


class _Counted:
    """Values counted one by one until there are too many of them, and whether each batch has each value once."""

    def __init__(self) -> None:
        self.values: Counter[Any] | None = Counter()
        self.may_be_unique = True

    def add(self, words: pa.Array, counts: np.ndarray) -> None:
        self.may_be_unique = self.may_be_unique and bool((counts == 1).all())
        if self.values is not None:
            if len(words) > MAX_COUNTED_VALUES:
                self.values = None
                return
            self.values.update(dict(zip(words.to_pylist(), counts.tolist(), strict=True)))
            if len(self.values) > MAX_COUNTED_VALUES:
                self.values = None


class TextColumnProfiler:
    """A column of a source without types: its texts, and which kinds they could be of."""

    def __init__(self, num_rows: int) -> None:
        self._most_unfit = num_rows // _UNFIT_SHARE
        self._unfit: dict[LogicalType, int] = dict.fromkeys(_STRICT, 0)
        self._limits = {kind: _Limits() for kind in _STRICT}
        self._lengths = _Limits()
        self._counted = _Counted()
        self._marked: Counter[str] = Counter()
        self._num_null = self._num_texts = self._num_commas = 0

    def add(self, column: pa.Array) -> None:
        counted = pc.value_counts(column)
        words, counts = counted.field("values"), counted.field("counts").to_numpy()
        self._num_null += column.null_count
        is_marker = pc.is_in(words, pa.array(MARKERS)).to_numpy(zero_copy_only=False)
        for place in np.flatnonzero(is_marker):
            self._marked[words[int(place)].as_py()] += int(counts[place])
        is_text = ~is_marker & words.is_valid().to_numpy(zero_copy_only=False)
        words, counts = words.filter(pa.array(is_text)), counts[is_text]
        self._num_texts += int(counts.sum())
        self._counted.add(words, counts)
        self._lengths.add(pc.utf8_length(words))
        self._num_commas += int(counts[_matching(words, _DECIMAL_COMMA)].sum())
        for kind in list(self._unfit):
            is_fit = _matching(words, _STRICT[kind])
            read, unfit = read_as(words, _ARROW[kind])
            is_fit &= ~unfit.to_numpy(zero_copy_only=False)
            self._unfit[kind] += int(counts[~is_fit].sum())
            if self._unfit[kind] > self._most_unfit:
                del self._unfit[kind]
            elif kind in ("integer", "number"):
                self._limits[kind].add(read.filter(pa.array(is_fit)))

    @property
    def _kind(self) -> LogicalType:
        fitting = [kind for kind, num in self._unfit.items() if num < self._num_texts]
        return min(fitting, key=lambda kind: self._unfit[kind] > 0) if fitting else "string"

    def markers(self) -> frozenset[str]:
        known = MARKERS if self._kind != "string" or not self._num_texts else CLEAR_MARKERS
        return frozenset(text for text in self._marked if text in known)

    def figures(self, missing: frozenset[str]) -> ColumnStatistics:
        kind = self._kind
        kept = Counter({text: num for text, num in self._marked.items() if text not in missing})
        values = None if self._counted.values is None else self._counted.values + kept
        lengths = [*map(len, kept), *filter(None, (self._lengths.low, self._lengths.high))]
        limits = self._limits.get(kind, _Limits())
        return ColumnStatistics(
            kind=kind,
            num_missing=self._num_null + sum(self._marked.values()) - kept.total(),
            num_unfit=self._unfit.get(kind, 0) + (kept.total() if kind != "string" else 0),
            values=values if values is None or len(values) <= MAX_COUNTED_VALUES else None,
            may_be_unique=self._counted.may_be_unique and all(num == 1 for num in kept.values()),
            low=limits.low,
            high=limits.high,
            min_length=min(lengths, default=None),
            max_length=max(lengths, default=None),
            is_decimal_comma=kind == "string" and self._num_commas > 0.9 * max(self._num_texts, 1),
        )


def _matching(words: pa.Array, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(words, pattern).to_numpy(zero_copy_only=False).astype(bool)


class TypedColumnProfiler:
    """A column of a source with types. A NaN is of no kind; it breaks a contract like any misfit."""

    def __init__(self, kind: LogicalType) -> None:
        self._kind: LogicalType = kind
        self._limits, self._lengths, self._counted = _Limits(), _Limits(), _Counted()
        self._num_missing = self._num_unfit = 0

    def add(self, column: pa.Array) -> None:
        self._num_missing += column.null_count
        if pa.types.is_null(column.type):
            return
        present = column.drop_null()
        if self._kind in _ARROW:
            unfit = misfits(present, _ARROW[self._kind])
            self._num_unfit += unfit.true_count
            present = present.filter(pc.invert(unfit))
        counted = pc.value_counts(present)
        self._counted.add(counted.field("values"), counted.field("counts").to_numpy())
        if self._kind in ("integer", "number"):
            self._limits.add(present)
        elif self._kind == "string":
            self._lengths.add(pc.utf8_length(present))

    def markers(self) -> frozenset[str]:
        return frozenset()

    def figures(self, missing: frozenset[str]) -> ColumnStatistics:
        return ColumnStatistics(
            kind=self._kind,
            num_missing=self._num_missing,
            num_unfit=self._num_unfit,
            values=self._counted.values,
            may_be_unique=self._counted.may_be_unique,
            low=self._limits.low,
            high=self._limits.high,
            min_length=self._lengths.low,
            max_length=self._lengths.high,
        )


class ArrayColumnProfiler:
    """A column of arrays. A row is unfit where one of its elements is missing or of no kind."""

    def __init__(self, element: LogicalType, kind: pa.DataType) -> None:
        self._element: LogicalType = element
        self._physical = _ELEMENTS.get(str(kind))
        self._limits = _Limits()
        self._lengths: Counter[int] = Counter()
        self._num_missing = self._num_unfit = 0

    def add(self, column: pa.Array) -> None:
        self._num_missing += column.null_count
        present = column.drop_null()
        lengths = pc.value_counts(pc.list_value_length(present))
        found = zip(lengths.field("values").to_pylist(), lengths.field("counts").to_pylist(), strict=True)
        self._lengths.update(dict(found))
        elements, rows = pc.list_flatten(present), pc.list_parent_indices(present)
        bad = elements.is_null()
        if self._element in _ARROW:
            bad = pc.or_(bad, misfits(elements, _ARROW[self._element]))
        if bad.true_count:
            self._num_unfit += len(pc.unique(rows.filter(bad)))
        if self._element in ("integer", "number"):
            self._limits.add(elements.filter(pc.invert(bad)) if bad.true_count else elements)

    def markers(self) -> frozenset[str]:
        return frozenset()

    def figures(self, missing: frozenset[str]) -> ColumnStatistics:
        return ColumnStatistics(
            kind="array",
            num_missing=self._num_missing,
            num_unfit=self._num_unfit,
            values=None,
            may_be_unique=False,
            element=self._element,
            physical=self._physical,
            low=self._limits.low,
            high=self._limits.high,
            min_length=min(self._lengths, default=None),
            max_length=max(self._lengths, default=None),
            lengths=tuple(sorted(self._lengths.items())),
        )
