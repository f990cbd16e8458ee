"""Rows divided: those that keep every rule go on, and the rest are set aside with what each breaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.odcs.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.validation.expectation_suite import RuleCount, ViolationExample
from bloomery.data_contracts.validation.row_checks import (
    CastBatch,
    cast_batch,
    describe_values,
    find_violations,
    parse_conditions,
    require_valid_text,
    row_rules,
)
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches, row_group_size_of
from bloomery.tasks.validate.row_mask import RowMask

MAX_EXAMPLES = 20
POSITION_COLUMN = "_row"
REASONS_COLUMN = "_reasons"
CONCEALED = "(personal)"
_REASON = pa.struct([("column", pa.string()), ("rule", pa.string()), ("value", pa.string())])


class Violation(NamedTuple):
    """A rule and which rows of a batch break it."""

    rule: Rule
    mask: pa.BooleanArray


class TableViolation(NamedTuple):
    """A rule and which rows break it, of the file that the rule was asked of."""

    rule: Rule
    rows: RowMask


class QuarantineWriter:
    """Writes breaking rows as they came, with their position in the source and what each breaks.

    The two columns more are `_row` and `_reasons`; a data set that has one of that name gets one more underscore.
    """

    def __init__(self, path: Path, schema: pa.Schema, personal: frozenset[str], group_rows: int) -> None:
        self._columns = schema.names
        fields = [pa.field(field.name, field.type) for field in schema]
        added = [(_free(POSITION_COLUMN, schema), pa.int64()), (_free(REASONS_COLUMN, schema), pa.list_(_REASON))]
        self._schema = pa.schema([*fields, *added])
        self._writer = RowWriter(path, self._schema, group_rows, personal)
        self._personal = personal

    def __enter__(self) -> QuarantineWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    @property
    def num_rows(self) -> int:
        return self._writer.num_rows

    def add(self, batch: CastBatch, start: int, broken: list[Violation]) -> None:
        """Set aside the rows of `batch` that break one of the rules; the first row of `batch` has position `start`."""
        rows = np.flatnonzero(any_violation(broken))
        found = batch.raw.take(pa.array(rows))
        told = _reasons(batch, rows, broken, self._personal)
        arrays = [*(found.column(name) for name in self._columns), pa.array(rows + start, pa.int64()), told]
        self._writer.write(pa.RecordBatch.from_arrays(arrays, schema=self._schema))


def _free(name: str, schema: pa.Schema) -> str:
    while name in schema.names:
        name = f"_{name}"
    return name


def any_violation(broken: Sequence[Violation]) -> np.ndarray:
    """Which rows break at least one of the rules. There is at least one."""
    whole = broken[0].mask
    for _, mask in broken[1:]:
        whole = pc.or_(whole, mask)
    return whole.to_numpy(zero_copy_only=False)


def _places(mask: pa.BooleanArray) -> np.ndarray:
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def _reasons(batch: CastBatch, rows: np.ndarray, broken: list[Violation], personal: frozenset[str]) -> pa.ListArray:
    """For each of `rows` what it breaks, in the order of `broken`."""
    places = [_places(mask) for _, mask in broken]
    rules = np.repeat(np.arange(len(broken)), [len(where) for where in places])
    order = np.argsort(np.concatenate(places), kind="stable")
    values = pa.concat_arrays(
        [_concealed(rule, batch, where, personal) for (rule, _), where in zip(broken, places, strict=True)]
    )
    reasons = pa.StructArray.from_arrays(
        [
            pa.array([rule.target for rule, _ in broken], pa.string()).take(pa.array(rules[order])),
            pa.array([rule.sentence for rule, _ in broken], pa.string()).take(pa.array(rules[order])),
            values.take(pa.array(order)),
        ],
        fields=list(_REASON),
    )
    ends = np.searchsorted(np.concatenate(places)[order], rows, side="right")
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), reasons)


def _concealed(rule: Rule, batch: CastBatch, rows: np.ndarray, personal: frozenset[str]) -> pa.StringArray:
    """The values that break the rule, unless they are a person's."""
    if personal.isdisjoint((rule.column, *rule.columns)):
        return describe_values(rule, batch, rows)
    return pa.array([CONCEALED] * len(rows), pa.string())


class FilterResult(NamedTuple):
    """What one pass over the rows came to. `num_untolerated` leaves out what only rules with a tolerance set aside."""

    counts: tuple[RuleCount, ...]
    set_aside: RowMask
    num_untolerated: int


def filter_rows(source: Path, contract: Contract, passed: Path, quarantine: QuarantineWriter) -> FilterResult:
    """Afterwards `passed` holds the rows that keep every rule about one row, in the contract's types.

    A row that breaks a warning stays. Memory is bounded by a few batches and one bit per row.

    Raises:
        DataUnfit: a column of text holds bytes that are no UTF-8.
    """
    schema = arrow_schema(contract)
    rules = row_rules(contract)
    read = parse_conditions(rules, schema)
    counts = [_Counting(rule, contract.personal_columns) for rule in rules]
    gone = RowMask(pq.read_metadata(source).num_rows)
    start = num_untolerated = 0
    with RowWriter(passed, schema, row_group_size_of(source)) as writer:
        for found in read_batches(source):
            require_valid_text(found, start)
            batch = cast_batch(found, schema)
            broken = []
            for counting in counts:
                mask = find_violations(counting.rule, batch, read)
                counting.add(batch, mask, start)
                if mask.true_count and counting.rule.severity == "error":
                    broken.append(Violation(counting.rule, mask))
            rows = batch.rows
            if broken:
                quarantine.add(batch, start, broken)
                whole = any_violation(broken)
                gone.add(np.flatnonzero(whole) + start)
                untolerated = [one for one in broken if one.rule.tolerance is None]
                num_untolerated += int(any_violation(untolerated).sum()) if untolerated else 0
                rows = rows.filter(pa.array(~whole))
            writer.write(rows)
            start += found.num_rows
    return FilterResult(tuple(counting.result() for counting in counts), gone, num_untolerated)


class _Counting:
    """Adds up over the batches how many rows break one rule."""

    def __init__(self, rule: Rule, personal: frozenset[str]) -> None:
        self.rule = rule
        self._personal = personal
        self._num_breaking = self._num_asked = 0
        self._examples: list[ViolationExample] = []

    def add(self, batch: CastBatch, mask: pa.BooleanArray, start: int) -> None:
        self._num_breaking += mask.true_count
        self._num_asked += batch.rows.num_rows - self._num_unasked(batch)
        if mask.true_count:
            self._examples += example_violations(
                Violation(self.rule, mask), batch, start, self._personal, self._num_wanted
            )

    @property
    def _num_wanted(self) -> int:
        return MAX_EXAMPLES - len(self._examples)

    def _num_unasked(self, batch: CastBatch) -> int:
        """A null is asked no question but whether it may be null."""
        if self.rule.kind == "expression" or (self.rule.kind == "required" and self.rule.target == self.rule.column):
            return 0
        return batch.raw.column(self.rule.column).null_count

    def result(self) -> RuleCount:
        return RuleCount(self.rule, self._num_breaking, self._num_asked, tuple(self._examples))


def example_violations(
    broken: Violation, batch: CastBatch, start: int, personal: frozenset[str], num: int
) -> list[ViolationExample]:
    """The first `num` rows that break the rule; the first row of `batch` has position `start`."""
    rows = _places(broken.mask)[:num]
    values = _concealed(broken.rule, batch, rows, personal).to_pylist() if len(rows) else []
    return [ViolationExample(start + int(row), value) for row, value in zip(rows, values, strict=True)]


def quarantine_rows(
    source: Path, contract: Contract, gone: RowMask, marked: list[TableViolation], quarantine: QuarantineWriter
) -> list[tuple[ViolationExample, ...]]:
    """Add the rows of `source` that break a rule about the table to `quarantine`, unless the rule only warns.

    `marked` counts the rows that are left when those of `gone` are taken out.

    Returns:
        Examples for each rule, by their position in `source`.
    """
    schema, personal = arrow_schema(contract), contract.personal_columns
    examples: list[list[ViolationExample]] = [[] for _ in marked]
    start = num_left = 0
    for found in read_batches(source):
        is_left = ~gone.between(start, found.num_rows)
        broken = []
        for _, rows in marked:
            mask = np.zeros(found.num_rows, dtype=bool)
            mask[is_left] = rows.between(num_left, int(is_left.sum()))
            broken.append(pa.array(mask))
        if any(mask.true_count for mask in broken):
            batch = cast_batch(found, schema)
            told = [Violation(rule, mask) for (rule, _), mask in zip(marked, broken, strict=True)]
            for one, kept in zip(told, examples, strict=True):
                kept += example_violations(one, batch, start, personal, MAX_EXAMPLES - len(kept))
            serious = [one for one in told if one.rule.severity == "error" and one.mask.true_count]
            if serious:
                quarantine.add(batch, start, serious)
        start += found.num_rows
        num_left += int(is_left.sum())
    return [tuple(kept) for kept in examples]


def drop_rows(path: Path, rows: RowMask) -> None:
    """Write the Parquet file again without the marked rows."""
    beside = path.with_suffix(".rest")
    start = 0
    with RowWriter(beside, pq.read_schema(path), row_group_size_of(path)) as writer:
        for batch in read_batches(path):
            writer.write(batch.filter(pa.array(~rows.between(start, batch.num_rows))))
            start += batch.num_rows
    beside.rename(path)
