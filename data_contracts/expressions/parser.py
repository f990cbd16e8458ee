"""Conditions on one row, in SQL: parsed, checked against the columns' types, and evaluated on a batch.

As with CHECK in SQL, a row breaks a condition that is false for it, but not one that is null. The dialect is DuckDB's.
Numbers without a decimal point are exact; numbers with one and all quotients are float64. Times without an offset are
in UTC.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.expressions.arrow_evaluator import evaluate
from bloomery.data_contracts.expressions.node_builder import KIND_NAMES, build_node
from bloomery.data_contracts.expressions.nodes import Node, node_depth
from bloomery.data_contracts.expressions.sql import parse_sql

_MAX_DEPTH = 100


class Condition(NamedTuple):
    """A parsed and checked condition. `columns` are those that it reads, in the order of the text."""

    text: str
    columns: tuple[str, ...]
    root: Node


@functools.lru_cache(maxsize=512)
def parse_condition(text: str, schema: pa.Schema) -> Condition:
    """Parses a condition on rows of `schema`.

    Raises:
        ValueError: `text` is not valid SQL, names an unknown column, compares values of different types, uses
            unsupported syntax, or is not a condition.
    """
    columns = referenced_columns(text)
    try:
        root = build_node(parse_sql(text), schema)
        is_too_deep = node_depth(root) > _MAX_DEPTH
    except RecursionError:
        is_too_deep = True
    if is_too_deep:
        raise ValueError(f"the condition is nested too deeply; at most {_MAX_DEPTH} levels are supported")
    if root.kind != "boolean":
        raise ValueError(f"{text!r} is {KIND_NAMES[root.kind]}, but a condition must be true or false")
    return Condition(text, columns, root)


def find_violations(condition: Condition, rows: pa.RecordBatch | pa.Table) -> pa.BooleanArray:
    """True for every row where the condition is false. `rows` have the schema with which it was parsed."""
    return pc.fill_null(pc.invert(evaluate(condition.root, rows)), False)


@functools.lru_cache(maxsize=512)
def referenced_columns(text: str) -> tuple[str, ...]:
    """The columns that a condition names, once each, in the order of the text.

    Raises:
        ValueError: `text` is not valid SQL, or names no column.
    """
    from sqlglot import exp

    names = dict.fromkeys(column.name for column in parse_sql(text).find_all(exp.Column, bfs=False))
    if not names:
        raise ValueError(f"{text!r} names no column; a condition must name at least one")
    return tuple(names)
