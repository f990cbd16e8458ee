"""The rows of a JSON request, checked by the contract's rules.

A request has only the columns that the model reads; a key or a label in a row is an unknown column and refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, TypeAdapter, ValidationError

from bloomery.data_contracts.expressions.parser import Condition, find_violations, parse_condition
from bloomery.data_contracts.expressions.row_evaluator import FallBackToArrow, RowFunction, compile_for_row
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.requests.column_types import column_type, object_type
from bloomery.data_contracts.requests.columnar_rows import ColumnarRows, ColumnKinds, Row
from bloomery.data_contracts.requests.json_schema import row_json_schema
from bloomery.data_contracts.requests.problems import (
    BodyUnreadable,
    RowsRefused,
    explain_body,
    explain_rows,
    row_problem,
    shorten,
)

_MAX_PYTHON_ROWS = 64  # with more rows Arrow evaluates a condition faster


class JsonRowParser:
    """Turns the rows of a request into a table, or raises RowsRefused with the problems of each row."""

    def __init__(self, contract: Contract, columns: Sequence[str]) -> None:
        input_columns = [column for column in contract.columns if column.name in columns]
        rules = [rule for rule in contract.rules() if rule.is_about_rows and rule.severity == "error"]
        row = object_type("Row", {column.name: column_type(column, rules) for column in input_columns})
        rows = Annotated[list[row], Field(min_length=1)]  # type: ignore[valid-type]
        self._list: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(rows)
        self._body: TypeAdapter[dict[str, list[dict[str, Any]]]] = TypeAdapter(object_type("Body", {"rows": rows}))
        self._input_columns, self._rules, self._title = input_columns, rules, contract.name
        self._names = [column.name for column in input_columns]
        contract_schema = arrow_schema(contract.columns)
        self.schema = pa.schema([contract_schema.field(name) for name in self._names])
        self._kinds = ColumnKinds(self.schema)
        # A condition on a column that the model does not read cannot be checked, since no request has that column.
        self._conditions = [
            _CompiledCondition(rule, condition, compile_for_row(condition.root, contract_schema))
            for rule in rules
            if rule.kind == "expression" and set(rule.columns) <= set(self._names)
            for condition in (parse_condition(rule.expression or "", contract_schema),)
        ]

    def parse_table(self, rows: Any) -> pa.Table:
        """The rows as a table in the contract's types, in the order of the request.

        Raises:
            RowsRefused: a column is missing, unknown or of the wrong type, or a value breaks a rule.
        """
        return pa.Table.from_batches([self.to_columns(self.parse_rows(rows)).batch])

    def parse_rows(self, rows: Any) -> list[Row]:
        """The rows of a request that are Python objects. Raises as `parse_table`."""
        try:
            parsed = self._list.validate_python(rows)
        except ValidationError as failure:
            raise RowsRefused(explain_rows(failure.errors(include_url=False))) from None
        self._require_conditions(parsed)
        return parsed

    def parse_json(self, body: bytes) -> list[Row]:
        """The rows of a request, `{"rows": [{...}, ...]}` in JSON.

        Raises:
            BodyUnreadable: the body is not JSON.
            RowsRefused: as `parse_table`; or the body is not an object with `rows`.
        """
        try:
            parsed = self._body.validate_json(body)
        except ValidationError as failure:
            details = failure.errors(include_url=False)
            if details[0]["type"] == "json_invalid":
                raise BodyUnreadable(details[0]["msg"].removeprefix("Invalid JSON: ")) from None
            raise RowsRefused(explain_body(details)) from None
        rows = parsed["rows"]
        self._require_conditions(rows)
        return rows

    def to_columns(self, rows: Sequence[Row]) -> ColumnarRows:
        """Checked rows, by column."""
        return ColumnarRows.from_rows(rows, self._kinds)

    def _require_conditions(self, rows: list[Row]) -> None:
        """Raises RowsRefused if a condition is false for a row."""
        batch = self.to_columns(rows).batch if self._conditions and len(rows) > _MAX_PYTHON_ROWS else None
        problems = [
            problem for condition in self._conditions for problem in self._find_problems(condition, rows, batch)
        ]
        if problems:
            raise RowsRefused(sorted(problems, key=lambda problem: problem["row"]))

    def _find_problems(
        self, compiled: _CompiledCondition, rows: list[Row], batch: pa.RecordBatch | None
    ) -> list[dict[str, Any]]:
        """A problem for each row that breaks the condition. Without a batch, Python evaluates row by row."""
        if batch is not None:
            positions = _false_positions(compiled.condition, batch)
        else:
            try:
                positions = [position for position, row in enumerate(rows) if compiled.evaluate(row) is False]
            except FallBackToArrow:
                positions = _false_positions(compiled.condition, self.to_columns(rows).batch)
        names, problems = compiled.condition.columns, []
        for position in positions:
            values = ", ".join(f"{name} = {_format_cell(rows[position][name])}" for name in names)
            problems.append(row_problem(position, ", ".join(names), values, compiled.rule.sentence))
        return problems

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of one row, for the endpoint's own documentation."""
        conditions = [compiled.rule for compiled in self._conditions]
        value_rules = [rule for rule in self._rules if rule.kind != "expression"]
        return row_json_schema(self._input_columns, [*value_rules, *conditions], self._title)


class _CompiledCondition(NamedTuple):
    """A rule with its condition, parsed for batches and compiled for single rows."""

    rule: Rule
    condition: Condition
    evaluate: RowFunction


def _false_positions(condition: Condition, rows: pa.RecordBatch) -> list[int]:
    return np.flatnonzero(find_violations(condition, rows).to_numpy(zero_copy_only=False)).tolist()


def _format_cell(value: Any) -> str:
    """A value of the table as a client would write it."""
    return value.isoformat() if isinstance(value, date) else shorten(value)
