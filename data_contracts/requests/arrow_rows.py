"""Rows of a request that come as an Arrow stream, checked by the same rules as the rows that were learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.odcs.arrow_schema import arrow_schema, is_compatible
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.requests.json_rows import BodyUnreadable, RowsRefused
from bloomery.data_contracts.validation.row_checks import (
    CastBatch,
    cast_batch,
    describe_values,
    find_violations,
    parse_conditions,
    row_rules,
)

ARROW_MEDIA_TYPE = "application/vnd.apache.arrow.stream"
_MOST_OF_A_RULE = 20


class ArrowRowParser:
    """Turns an Arrow stream into rows of the contract's types, or says what is wrong with it."""

    def __init__(self, contract: Contract, columns: Sequence[str]) -> None:
        whole = arrow_schema(contract.columns)
        self.schema = pa.schema([field for field in whole if field.name in columns])
        self._required = {column.name for column in contract.columns if column.is_required}
        self._rules = tuple(
            rule
            for rule in row_rules(contract)
            if rule.severity == "error" and set(rule.columns or (rule.column,)) <= set(self.schema.names)
        )
        self._conditions = parse_conditions(self._rules, whole)

    def parse_stream(self, body: bytes, most_rows: int) -> pa.RecordBatch:
        """The rows of a stream, of which there is at least one.

        Raises:
            BodyUnreadable: it is no Arrow stream, is cut off, or holds values that are damaged.
            RowsRefused: a column is missing, unknown or of another type, a value breaks a rule, or there are more rows
                than `most_rows`.
        """
        found = self._read(body, most_rows)
        if not found.num_rows:
            raise RowsRefused([_problem("", "", "no rows", "there must be at least one")])
        batch = cast_batch(self._with_columns(found), self.schema)
        problems = [problem for rule in self._rules for problem in self._broken(rule, batch)]
        if problems:
            raise RowsRefused(sorted(problems, key=lambda problem: problem["row"]))
        return batch.rows

    def _read(self, body: bytes, most_rows: int) -> pa.RecordBatch:
        batches, num_rows = [], 0
        try:
            with pa.ipc.open_stream(pa.BufferReader(body)) as stream:
                for batch in stream:
                    batch.validate(full=True)
                    num_rows += batch.num_rows
                    if num_rows > most_rows:
                        rule = f"at most {most_rows:,} are answered at once"
                        raise RowsRefused([_problem("", "", f"more than {most_rows:,} rows", rule)])
                    batches.append(batch)
                whole = pa.Table.from_batches(batches, stream.schema).combine_chunks()
        except (pa.ArrowException, OSError, ValueError) as failure:
            raise BodyUnreadable(f"no whole Arrow stream: {str(failure).splitlines()[0]}") from None
        if not whole.num_rows:
            return pa.RecordBatch.from_pylist([], schema=whole.schema)
        return whole.to_batches()[0]

    def _with_columns(self, found: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of the contract in its order; what may be left out is null where it is."""
        names = found.schema.names
        problems = [
            *(
                _problem("", name, "no column", "the column is required")
                for name in self.schema.names
                if name not in names and name in self._required
            ),
            *(
                _problem("", name, str(found.schema.field(place).type), "the contract has no such column")
                for place, name in enumerate(names)
                if name not in self.schema.names
            ),
            *(
                _problem("", name, "two columns", "a name stands for one column")
                for name in sorted({name for name in names if names.count(name) > 1})
            ),
        ]
        if problems:
            raise RowsRefused(problems)
        arrays = []
        for field in self.schema:
            if field.name not in names:
                arrays.append(pa.nulls(found.num_rows, field.type))
                continue
            values = found.column(field.name)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            if not is_compatible(values.type, field.type):
                rule = f"must be {field.type}, or a type of the same kind"
                problems.append(_problem("", field.name, str(values.type), rule))
            arrays.append(values)
        if problems:
            raise RowsRefused(problems)
        return pa.RecordBatch.from_arrays(arrays, names=self.schema.names)

    def _broken(self, rule: Any, batch: CastBatch) -> list[dict[str, Any]]:
        rows = np.flatnonzero(find_violations(rule, batch, self._conditions).to_numpy(zero_copy_only=False))[
            :_MOST_OF_A_RULE
        ]
        if not len(rows):
            return []
        column = ", ".join(rule.columns) or rule.target
        texts = describe_values(rule, batch, rows).to_pylist()
        return [_problem(row, column, text, rule.sentence) for row, text in zip(rows.tolist(), texts, strict=True)]


def _problem(row: int | str, column: str, found: str, rule: str) -> dict[str, Any]:
    return {"row": row, "column": column, "found": found, "rule": rule}
