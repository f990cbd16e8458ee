"""An expression as Python functions of one row, with the results that `arrow_evaluator.py` gives for a batch.

For one row Arrow takes about 20 microseconds for each operator, most of it overhead. Python's integers are exact, and
so is its comparison of integers with floats.
"""

from __future__ import annotations

import ctypes
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.expressions.nodes import Node

Row = Mapping[str, Any]  # by column: int, float, str, bool, date, datetime with an offset, list, or None
RowFunction = Callable[[Row], Any]  # None is SQL's null


class FallBackToArrow(Exception):
    """Python's result for this row may differ from Arrow's, so Arrow must evaluate it."""


def compile_for_row(node: Node, schema: pa.Schema) -> RowFunction:
    """The function that computes the value of `node` for one row of `schema`.

    It raises FallBackToArrow for upper or lower case of letters beyond ASCII.
    """
    parts = tuple(compile_for_row(part, schema) for part in node.parts)
    return _COMPILERS[node.operation](node, parts, schema)


def _column(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    name, kind = node.value, schema.field(node.value).type
    if not pa.types.is_float32(kind):
        return operator.itemgetter(name)

    def rounded(row: Row) -> float | None:
        value = row[name]
        return None if value is None else ctypes.c_float(value).value

    return rounded


def _literal(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    value = node.value
    return lambda row: value


def _cast_to(kind: str, part: RowFunction, node: Node) -> RowFunction:
    """`part`, which computes `node`, with integers converted to floats if `kind` is `number`."""
    if kind != "number" or node.kind != "integer":
        return part

    def as_float(row: Row) -> float | None:
        value = part(row)
        return None if value is None else float(value)

    return as_float


def _binary(compute: Callable[[Any, Any], Any]) -> Callable[[Node, tuple[RowFunction, ...], pa.Schema], RowFunction]:
    """For operators of two values whose result is null if either is null."""

    def compile_operator(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
        left, right = (_cast_to(node.kind, part, of) for part, of in zip(parts, node.parts, strict=True))
        literal = node.parts[1].value if node.parts[1].operation == "literal" else None
        if literal is not None and right is parts[1]:  # the common case: saves a call and a test for null

            def evaluate_with_literal(row: Row) -> Any:
                a = left(row)
                return None if a is None else compute(a, literal)

            return evaluate_with_literal

        def evaluate(row: Row) -> Any:
            a, b = left(row), right(row)
            return None if a is None or b is None else compute(a, b)

        return evaluate

    return compile_operator


def _unary(compute: Callable[[Any], Any]) -> Callable[[Node, tuple[RowFunction, ...], pa.Schema], RowFunction]:
    def compile_operator(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
        (part,) = parts

        def evaluate(row: Row) -> Any:
            value = part(row)
            return None if value is None else compute(value)

        return evaluate

    return compile_operator


def _quotient(a: float, b: float) -> float | None:
    return None if b == 0 else a / b


def _remainder(a: Any, b: Any) -> Any:
    """The remainder with the sign of the dividend."""
    if b == 0:
        return None
    if isinstance(a, int):
        size = abs(a) % abs(b)
        return size if a > 0 else -size
    return math.nan if math.isinf(a) else math.fmod(a, b)


def _logic(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    deciding = node.operation == "or"  # one true part decides an OR, one false part an AND

    def evaluate(row: Row) -> bool | None:
        result: bool | None = not deciding
        for part in parts:
            value = part(row)
            if value is deciding:
                return deciding
            if value is None:
                result = None
        return result

    return evaluate


def _case(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    *branches, last = parts
    *nodes, last_node = node.parts
    values = [_cast_to(node.kind, part, of) for part, of in zip(branches[1::2], nodes[1::2], strict=True)]
    pairs = tuple(zip(branches[::2], values, strict=True))
    default = _cast_to(node.kind, last, last_node)

    def evaluate(row: Row) -> Any:
        for condition, value in pairs:
            if condition(row):
                return value(row)
        return default(row)

    return evaluate


def _coalesce(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    values = tuple(_cast_to(node.kind, part, of) for part, of in zip(parts, node.parts, strict=True))

    def evaluate(row: Row) -> Any:
        return next((cell for value in values if (cell := value(row)) is not None), None)

    return evaluate


def _like(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    regex = node.value.removeprefix(r"(?s)\A").removesuffix(r"\z")
    matches = re.compile(regex, re.DOTALL).fullmatch
    return _unary(lambda text: matches(text) is not None)(node, parts, schema)


def _ascii_only(change: Callable[[str], str]) -> Callable[[str], str]:
    def change_ascii(text: str) -> str:
        if not text.isascii():
            raise FallBackToArrow
        return change(text)

    return change_ascii


def _is_null(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    (part,) = parts
    if node.parts[0].operation == "column":
        name = node.parts[0].value
        return lambda row: row[name] is None
    return lambda row: part(row) is None


_COMPILERS: dict[str, Callable[[Node, tuple[RowFunction, ...], pa.Schema], RowFunction]] = {
    "column": _column,
    "literal": _literal,
    "+": _binary(operator.add),
    "-": _binary(operator.sub),
    "*": _binary(operator.mul),
    "/": _binary(_quotient),
    "%": _binary(_remainder),
    "negate": _unary(operator.neg),
    "abs": _unary(abs),
    "=": _binary(operator.eq),
    "<>": _binary(operator.ne),
    "<": _binary(operator.lt),
    "<=": _binary(operator.le),
    ">": _binary(operator.gt),
    ">=": _binary(operator.ge),
    "and": _logic,
    "or": _logic,
    "case": _case,
    "coalesce": _coalesce,
    "like": _like,
    "not": _unary(operator.not_),
    "is null": _is_null,
    "length": _unary(len),
    "lower": _unary(_ascii_only(str.lower)),
    "upper": _unary(_ascii_only(str.upper)),
    "trim": _unary(lambda text: text.strip(" ")),
}
