"""The rows of a request that is an Arrow stream, checked by the same rules as training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema, is_compatible
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.requests.problems import BodyUnreadable, RowsRefused, row_problem
from bloomery.data_contracts.validation.row_checks import (
    CastBatch,
    cast_batch,
    describe_values,
    find_violations,
    is_written_date,
    parse_conditions,
    row_rules,
)

ARROW_MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_MAX_PROBLEMS_PER_RULE = 20


class ArrowRowParser:
    """Turns an Arrow stream into rows of the contract's types, or raises RowsRefused with the problems of each row."""

    def __init__(self, contract: Contract, columns: Sequence[str]) -> None:
        contract_schema = arrow_schema(contract.columns)
        self.schema = pa.schema([field for field in contract_schema if field.name in columns])
        self._contract = contract
        self._required = {column.name for column in contract.columns if column.is_required}
        self._rules = tuple(
            rule
            for rule in row_rules(contract)
            if rule.severity == "error" and set(rule.columns or (rule.column,)) <= set(self.schema.names)
        )
        self._conditions = parse_conditions(self._rules, contract_schema)

    def parse_stream(self, body: bytes, max_rows: int) -> pa.RecordBatch:
        """The rows of a stream, at least one.

        Raises:
            BodyUnreadable: the body is not an Arrow stream, is truncated, or has damaged values.
            RowsRefused: a column is missing, unknown or of another type, a value breaks a rule, or there are more rows
                than `max_rows`.
        """
        return self.parse_batch(self._read(body, max_rows))

    def parse_batch(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows in the contract's types. Raises RowsRefused as `parse_stream` does."""
        if not rows.num_rows:
            raise RowsRefused([row_problem("", "", "no rows", "there must be at least one")])
        batch = cast_batch(self._select_columns(rows), self.schema, self._contract.date_formats)
        problems = [problem for rule in self._rules for problem in self._find_problems(rule, batch)]
        if problems:
            raise RowsRefused(sorted(problems, key=lambda problem: problem["row"]))
        return batch.rows

    def _read(self, body: bytes, max_rows: int) -> pa.RecordBatch:
        batches, num_rows = [], 0
        try:
            with pa.ipc.open_stream(pa.BufferReader(body)) as stream:
                for batch in stream:
                    batch.validate(full=True)
                    num_rows += batch.num_rows
                    if num_rows > max_rows:
                        rule = f"a request may have at most {max_rows:,}"
                        raise RowsRefused([row_problem("", "", f"more than {max_rows:,} rows", rule)])
                    batches.append(batch)
                table = pa.Table.from_batches(batches, stream.schema).combine_chunks()
        except (pa.ArrowException, OSError, ValueError) as failure:
            raise BodyUnreadable(f"not a complete Arrow stream: {str(failure).splitlines()[0]}") from None
        if not table.num_rows:
            return pa.RecordBatch.from_pylist([], schema=table.schema)
        return table.to_batches()[0]

    def _select_columns(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The contract's columns in its order. An optional column that the request lacks is null."""
        names = rows.schema.names
        problems = [
            *(
                row_problem("", name, "no column", "the column is required")
                for name in self.schema.names
                if name not in names and name in self._required
            ),
            *(
                row_problem("", name, str(rows.schema.field(position).type), "the contract has no such column")
                for position, name in enumerate(names)
                if name not in self.schema.names
            ),
            *(
                row_problem("", name, "two columns", "a column may occur only once")
                for name in sorted({name for name in names if names.count(name) > 1})
            ),
        ]
        if problems:
            raise RowsRefused(problems)
        arrays = []
        for field in self.schema:
            if field.name not in names:
                arrays.append(pa.nulls(rows.num_rows, field.type))
                continue
            values = rows.column(field.name)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            is_written = is_written_date(pa.field(field.name, values.type), self._contract)
            if not is_written and not is_compatible(values.type, field.type):
                rule = f"must be {field.type}, or a type of the same kind"
                problems.append(row_problem("", field.name, str(values.type), rule))
            arrays.append(values)
        if problems:
            raise RowsRefused(problems)
        return pa.RecordBatch.from_arrays(arrays, names=self.schema.names)

    def _find_problems(self, rule: Rule, batch: CastBatch) -> list[dict[str, Any]]:
        mask = find_violations(rule, batch, self._conditions).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(mask)[:_MAX_PROBLEMS_PER_RULE]
        if not len(rows):
            return []
        column = ", ".join(rule.columns) or rule.target
        values = describe_values(rule, batch, rows).to_pylist()
        return [
            row_problem(row, column, value, rule.sentence) for row, value in zip(rows.tolist(), values, strict=True)
        ]
