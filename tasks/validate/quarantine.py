"""Writes rows that break a rule to quarantine, each with its position in the source and the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.validation.expectation_suite import ViolationExample
from bloomery.data_contracts.validation.row_checks import CastBatch, describe_values
from bloomery.tasks.infrastructure.parquet import RowWriter

MAX_EXAMPLES = 20
POSITION_COLUMN = "_row"
REASONS_COLUMN = "_reasons"
CONCEALED = "(personal)"
_REASON = pa.struct([("column", pa.string()), ("rule", pa.string()), ("value", pa.string())])


class Violation(NamedTuple):
    """A rule, and which rows of a batch break it."""

    rule: Rule
    mask: pa.BooleanArray


class QuarantineWriter:
    """Writes rows unchanged, with their position in the source and the rules that each breaks.

    The two columns for this are `_row` and `_reasons`, with more underscores where the data has a column of that name.
    """

    def __init__(self, path: Path, schema: pa.Schema, personal: frozenset[str], row_group_size: int) -> None:
        self._columns = schema.names
        fields = [pa.field(field.name, field.type) for field in schema]
        position = (_unused_name(POSITION_COLUMN, schema), pa.int64())
        reasons = (_unused_name(REASONS_COLUMN, schema), pa.list_(_REASON))
        self._schema = pa.schema([*fields, position, reasons])
        self._writer = RowWriter(path, self._schema, row_group_size, personal)
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

    def add(self, batch: CastBatch, start: int, violations: list[Violation]) -> None:
        """Adds the rows of `batch` that break one of the rules. The first row of `batch` has the position `start`."""
        rows = np.flatnonzero(any_violation(violations))
        raw = batch.raw.take(pa.array(rows))
        reasons = _reasons(batch, rows, violations, self._personal)
        arrays = [*(raw.column(name) for name in self._columns), pa.array(rows + start, pa.int64()), reasons]
        self._writer.write(pa.RecordBatch.from_arrays(arrays, schema=self._schema))


def any_violation(violations: Sequence[Violation]) -> np.ndarray:
    """Returns which rows break at least one of the rules, of which there must be one."""
    union = violations[0].mask
    for _, mask in violations[1:]:
        union = pc.or_(union, mask)
    return union.to_numpy(zero_copy_only=False)


def example_violations(
    violation: Violation, batch: CastBatch, start: int, personal: frozenset[str], num: int
) -> list[ViolationExample]:
    """Returns the first `num` rows that break the rule. The first row of `batch` has the position `start`."""
    rows = _row_indices(violation.mask)[:num]
    values = _values(violation.rule, batch, rows, personal).to_pylist() if len(rows) else []
    return [ViolationExample(start + int(row), value) for row, value in zip(rows, values, strict=True)]


def _unused_name(name: str, schema: pa.Schema) -> str:
    while name in schema.names:
        name = f"_{name}"
    return name


def _row_indices(mask: pa.BooleanArray) -> np.ndarray:
    return np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def _reasons(batch: CastBatch, rows: np.ndarray, violations: list[Violation], personal: frozenset[str]) -> pa.ListArray:
    """Returns for each of `rows` the rules that it breaks, in the order of `violations`."""
    indices = [_row_indices(mask) for _, mask in violations]
    rules = np.repeat(np.arange(len(violations)), [len(rule_rows) for rule_rows in indices])
    order = np.argsort(np.concatenate(indices), kind="stable")
    values = pa.concat_arrays(
        [_values(rule, batch, rule_rows, personal) for (rule, _), rule_rows in zip(violations, indices, strict=True)]
    )
    reasons = pa.StructArray.from_arrays(
        [
            pa.array([rule.target for rule, _ in violations], pa.string()).take(pa.array(rules[order])),
            pa.array([rule.sentence for rule, _ in violations], pa.string()).take(pa.array(rules[order])),
            values.take(pa.array(order)),
        ],
        fields=list(_REASON),
    )
    ends = np.searchsorted(np.concatenate(indices)[order], rows, side="right")
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), reasons)


def _values(rule: Rule, batch: CastBatch, rows: np.ndarray, personal: frozenset[str]) -> pa.StringArray:
    """Returns the values that break the rule, concealed where a column is personal."""
    if personal.isdisjoint((rule.column, *rule.columns)):
        return describe_values(rule, batch, rows)
    return pa.array([CONCEALED] * len(rows), pa.string())
