"""A checked condition asked of one row at a time, as it is asked of a batch (`evaluation.py`), without Arrow's cost.

For a request of one row Arrow takes some 20 microseconds for each operator, whatever it does. Here a condition becomes
Python functions of a row. Whole numbers are Python's, which are exact, and so is comparing them with real ones.
"""

from __future__ import annotations

import ctypes
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.expressions.arrow_evaluator import Node

Row = Mapping[str, Any]  # by column: int, float, str, bool, date, datetime with an offset, list, or None
RowFunction = Callable[[Row], Any]  # None is SQL's null


class FallBackToArrow(Exception):
    """Python may see this row otherwise than Arrow does: ask Arrow."""


def compile_for_row(node: Node, schema: pa.Schema) -> RowFunction:
    """The value of `node` for one row, whose cells are what columns of `schema` hold.

    The function that comes back raises Unsure where upper and lower case of other letters than ASCII's are asked for.
    """
    parts = tuple(compile_for_row(part, schema) for part in node.parts)
    return _MAKERS[node.operation](node, parts, schema)


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


def _as(kind: str, part: RowFunction, node: Node) -> RowFunction:
    """`part`, the value of `node`, as a real number where that is wanted and it is a whole one."""
    if kind != "number" or node.kind != "integer":
        return part

    def real(row: Row) -> float | None:
        value = part(row)
        return None if value is None else float(value)

    return real


def _of_two(compute: Callable[[Any, Any], Any]) -> Callable[[Node, tuple[RowFunction, ...], pa.Schema], RowFunction]:
    """For operators of two values that are null if either is."""

    def made(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
        left, right = (_as(node.kind, part, of) for part, of in zip(parts, node.parts, strict=True))
        wanted = node.parts[1].value if node.parts[1].operation == "literal" else None
        if wanted is not None and right is parts[1]:  # the usual one: so it is a call less, and a test less

            def asked_of_literal(row: Row) -> Any:
                a = left(row)
                return None if a is None else compute(a, wanted)

            return asked_of_literal

        def asked(row: Row) -> Any:
            a, b = left(row), right(row)
            return None if a is None or b is None else compute(a, b)

        return asked

    return made


def _of_one(compute: Callable[[Any], Any]) -> Callable[[Node, tuple[RowFunction, ...], pa.Schema], RowFunction]:
    def made(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
        (part,) = parts

        def asked(row: Row) -> Any:
            value = part(row)
            return None if value is None else compute(value)

        return asked

    return made


def _quotient(a: float, b: float) -> float | None:
    return None if b == 0 else a / b


def _remainder(a: Any, b: Any) -> Any:
    """With the sign of what is divided."""
    if b == 0:
        return None
    if isinstance(a, int):
        size = abs(a) % abs(b)
        return size if a > 0 else -size
    return math.nan if math.isinf(a) else math.fmod(a, b)


def _logic(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    decides = node.operation == "or"  # true decides an or, false an and

    def asked(row: Row) -> bool | None:
        found: bool | None = not decides
        for part in parts:
            value = part(row)
            if value is decides:
                return decides
            if value is None:
                found = None
        return found

    return asked


def _case(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    *branches, last = parts
    *nodes, last_node = node.parts
    values = [_as(node.kind, part, of) for part, of in zip(branches[1::2], nodes[1::2], strict=True)]
    pairs = tuple(zip(branches[::2], values, strict=True))
    otherwise = _as(node.kind, last, last_node)

    def asked(row: Row) -> Any:
        for condition, value in pairs:
            if condition(row):
                return value(row)
        return otherwise(row)

    return asked


def _coalesce(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    values = tuple(_as(node.kind, part, of) for part, of in zip(parts, node.parts, strict=True))

    def asked(row: Row) -> Any:
        return next((found for value in values if (found := value(row)) is not None), None)

    return asked


def _like(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    inside = node.value.removeprefix(r"(?s)\A").removesuffix(r"\z")
    matches = re.compile(inside, re.DOTALL).fullmatch
    return _of_one(lambda text: matches(text) is not None)(node, parts, schema)


def _in_case(change: Callable[[str], str]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        if not text.isascii():
            raise FallBackToArrow
        return change(text)

    return changed


def _is_null(node: Node, parts: tuple[RowFunction, ...], schema: pa.Schema) -> RowFunction:
    (part,) = parts
    if node.parts[0].operation == "column":
        name = node.parts[0].value
        return lambda row: row[name] is None
    return lambda row: part(row) is None


_MAKERS: dict[str, Callable[[Node, tuple[RowFunction, ...], pa.Schema], RowFunction]] = {
    "column": _column,
    "literal": _literal,
    "+": _of_two(operator.add),
    "-": _of_two(operator.sub),
    "*": _of_two(operator.mul),
    "/": _of_two(_quotient),
    "%": _of_two(_remainder),
    "negate": _of_one(operator.neg),
    "abs": _of_one(abs),
    "=": _of_two(operator.eq),
    "<>": _of_two(operator.ne),
    "<": _of_two(operator.lt),
    "<=": _of_two(operator.le),
    ">": _of_two(operator.gt),
    ">=": _of_two(operator.ge),
    "and": _logic,
    "or": _logic,
    "case": _case,
    "coalesce": _coalesce,
    "like": _like,
    "not": _of_one(operator.not_),
    "is null": _is_null,
    "length": _of_one(len),
    "lower": _of_one(_in_case(str.lower)),
    "upper": _of_one(_in_case(str.upper)),
    "trim": _of_one(lambda text: text.strip(" ")),
}
