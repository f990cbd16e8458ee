"""Checked rows of a request, by column, as Python's values.

For a few rows, creating an Arrow array costs more than encoding its values. So an encoder first asks for the values
themselves, which are bit for bit those of the Arrow column; a method returns None where only Arrow has the values.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

Row = dict[str, Any]  # a checked row by column
Cells = dict[str, list[Any]]  # the values of each column, in the rows' order


class ColumnKinds:
    """The columns of a schema that can be read without Arrow, by kind of value."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.names = tuple(schema.names)
        kinds = {field.name: field.type for field in schema}
        self.numbers = frozenset(name for name, kind in kinds.items() if _is_number(kind))
        self.float32 = frozenset(name for name, kind in kinds.items() if pa.types.is_float32(kind))
        self.strings = frozenset(
            name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_integer(kind)
        )
        self.element_types: dict[str, np.dtype] = {
            name: pa.array([], kind.value_type).to_numpy(zero_copy_only=False).dtype
            for name, kind in kinds.items()
            if pa.types.is_list(kind) and _is_number(kind.value_type)
        }


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


class ColumnarRows:
    """Rows that keep the contract, by column."""

    def __init__(self, cells: Cells, kinds: ColumnKinds) -> None:
        self.cells, self.kinds = cells, kinds
        self.num_rows = len(next(iter(cells.values())))

    @classmethod
    def from_rows(cls, rows: Sequence[Row], kinds: ColumnKinds) -> ColumnarRows:
        """Checked rows, each with a value or None for every column of the schema."""
        return cls({name: [row[name] for row in rows] for name in kinds.names}, kinds)

    @property
    def schema(self) -> pa.Schema:
        return self.kinds.schema

    def __getitem__(self, column: str) -> pa.Array:
        return pa.array(self.cells[column], self.schema.field(column).type)

    @cached_property
    def batch(self) -> pa.RecordBatch:
        """The rows in the contract's types."""
        return pa.RecordBatch.from_arrays([self[name] for name in self.schema.names], schema=self.schema)

    def slice(self, start: int, num_rows: int) -> ColumnarRows:
        return ColumnarRows({name: cells[start : start + num_rows] for name, cells in self.cells.items()}, self.kinds)

    def numbers(self, columns: Sequence[str]) -> np.ndarray | None:
        """The values of numeric or boolean columns as float64 of shape (columns, rows), NaN for null."""
        if not self.kinds.numbers.issuperset(columns):
            return None
        values = np.array([self.cells[column] for column in columns], np.float64)
        if not self.kinds.float32.isdisjoint(columns):
            for row, column in zip(values, columns, strict=True):
                if column in self.kinds.float32:
                    row[:] = row.astype(np.float32)
        return values

    def strings(self, column: str) -> list[str | int | None] | None:
        """The values of a column of text or integers."""
        return self.cells[column] if column in self.kinds.strings else None

    def elements(self, column: str) -> np.ndarray | None:
        """The elements of lists of equal length, one list after the other, in the type of the column's elements."""
        kind = self.kinds.element_types.get(column)
        if kind is None:
            return None
        try:
            values = np.array(self.cells[column], kind)
        except (TypeError, ValueError):  # a null, or lists of several lengths
            return None
        return None if kind.kind == "f" and np.isnan(values).any() else values.reshape(-1)


def to_table(parts: Sequence[ColumnarRows | pa.RecordBatch]) -> pa.Table:
    """The rows of all parts, which have one schema. Cells are joined first, since Arrow's cost is per array."""
    batches: list[pa.RecordBatch] = []
    for are_cells, group in itertools.groupby(parts, key=lambda part: isinstance(part, ColumnarRows)):
        members = list(group)
        if are_cells:
            cells = {
                name: list(itertools.chain.from_iterable(member.cells[name] for member in members))
                for name in members[0].cells
            }
            members = [ColumnarRows(cells, members[0].kinds).batch]
        batches += members
    return pa.Table.from_batches(batches)
