"""Filters rows: those that keep every rule pass, and the others go to quarantine with the reasons."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.validation.expectation_suite import RuleCount, ViolationExample
from bloomery.data_contracts.validation.row_checks import (
    CastBatch,
    cast_batch,
    find_violations,
    parse_conditions,
    require_valid_text,
    row_rules,
)
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches, row_group_size_of
from bloomery.tasks.validate.quarantine import (
    MAX_EXAMPLES,
    QuarantineWriter,
    Violation,
    any_violation,
    example_violations,
)
from bloomery.tasks.validate.row_mask import RowMask


class TableViolation(NamedTuple):
    """A rule about the table, and which rows of the file that passed break it."""

    rule: Rule
    rows: RowMask


class FilterResult(NamedTuple):
    """The result of one pass over the rows. `num_untolerated` rows break a rule that has no tolerance of its own."""

    counts: tuple[RuleCount, ...]
    quarantined: RowMask
    num_untolerated: int


def filter_rows(source: Path, contract: Contract, valid_path: Path, quarantine: QuarantineWriter) -> FilterResult:
    """Writes the rows that keep every rule about one row to `valid_path`, in the contract's types.

    A row that breaks only warnings passes. Memory is bounded by a few batches and one bit per row.

    Raises:
        DataUnfit: a column of text holds bytes that are not UTF-8.
    """
    schema = arrow_schema(contract.columns)
    rules = row_rules(contract)
    conditions = parse_conditions(rules, schema)
    counters = [_ViolationCounter(rule, contract.personal_columns) for rule in rules]
    quarantined = RowMask(pq.read_metadata(source).num_rows)
    start = num_untolerated = 0
    with RowWriter(valid_path, schema, row_group_size_of(source)) as writer:
        for raw in read_batches(source):
            require_valid_text(raw, start)
            batch = cast_batch(raw, schema, contract.date_formats)
            violations = []
            for counter in counters:
                mask = find_violations(counter.rule, batch, conditions)
                counter.add(batch, mask, start)
                if mask.true_count and counter.rule.severity == "error":
                    violations.append(Violation(counter.rule, mask))
            rows = batch.rows
            if violations:
                quarantine.add(batch, start, violations)
                is_broken = any_violation(violations)
                quarantined.add(np.flatnonzero(is_broken) + start)
                untolerated = [violation for violation in violations if violation.rule.tolerance is None]
                num_untolerated += int(any_violation(untolerated).sum()) if untolerated else 0
                rows = rows.filter(pa.array(~is_broken))
            writer.write(rows)
            start += raw.num_rows
    return FilterResult(tuple(counter.result() for counter in counters), quarantined, num_untolerated)


class _ViolationCounter:
    """Counts over the batches how many rows break one rule, and keeps the first as examples."""

    def __init__(self, rule: Rule, personal: frozenset[str]) -> None:
        self.rule = rule
        self._personal = personal
        self._num_violations = self._num_checked = 0
        self._examples: list[ViolationExample] = []

    def add(self, batch: CastBatch, mask: pa.BooleanArray, start: int) -> None:
        self._num_violations += mask.true_count
        self._num_checked += batch.rows.num_rows - self._count_unchecked(batch)
        if mask.true_count:
            num_examples = MAX_EXAMPLES - len(self._examples)
            self._examples += example_violations(Violation(self.rule, mask), batch, start, self._personal, num_examples)

    def _count_unchecked(self, batch: CastBatch) -> int:
        """Returns the number of nulls, to which only conditions and the rule that forbids them apply."""
        if self.rule.kind == "expression" or (self.rule.kind == "required" and not self.rule.is_of_items):
            return 0
        return batch.raw.column(self.rule.column).null_count

    def result(self) -> RuleCount:
        return RuleCount(self.rule, self._num_violations, self._num_checked, tuple(self._examples))


def quarantine_rows(
    source: Path,
    contract: Contract,
    quarantined: RowMask,
    table_violations: list[TableViolation],
    quarantine: QuarantineWriter,
) -> list[tuple[ViolationExample, ...]]:
    """Adds the rows of `source` that break a rule about the table to `quarantine`, unless the rule only warns.

    The rows of `table_violations` are numbered without those of `quarantined`.

    Returns:
        Examples for each rule, by their position in `source`.
    """
    schema, personal = arrow_schema(contract.columns), contract.personal_columns
    examples: list[list[ViolationExample]] = [[] for _ in table_violations]
    start = num_passed = 0
    for raw in read_batches(source):
        has_passed = ~quarantined.between(start, raw.num_rows)
        violations = []
        for rule, rows in table_violations:
            mask = np.zeros(raw.num_rows, dtype=bool)
            mask[has_passed] = rows.between(num_passed, int(has_passed.sum()))
            violations.append(Violation(rule, pa.array(mask)))
        if any(violation.mask.true_count for violation in violations):
            batch = cast_batch(raw, schema, contract.date_formats)
            for violation, rule_examples in zip(violations, examples, strict=True):
                rule_examples += example_violations(
                    violation, batch, start, personal, MAX_EXAMPLES - len(rule_examples)
                )
            errors = [
                violation
                for violation in violations
                if violation.rule.severity == "error" and violation.mask.true_count
            ]
            if errors:
                quarantine.add(batch, start, errors)
        start += raw.num_rows
        num_passed += int(has_passed.sum())
    return [tuple(rule_examples) for rule_examples in examples]


def drop_rows(path: Path, rows: RowMask) -> None:
    """Writes the Parquet file again without the rows of the mask."""
    temporary = path.with_suffix(".rest")
    start = 0
    with RowWriter(temporary, pq.read_schema(path), row_group_size_of(path)) as writer:
        for batch in read_batches(path):
            writer.write(batch.filter(pa.array(~rows.between(start, batch.num_rows))))
            start += batch.num_rows
    temporary.rename(path)
