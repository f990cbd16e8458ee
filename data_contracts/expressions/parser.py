"""Conditions on one row, in SQL: read, checked against the columns' types, and asked of a batch.

A condition has the meaning of SQL's CHECK: a row breaks it where it is false, and not where it is null. Words are read
as DuckDB reads them. Numbers without a point are exact; numbers with one are float64, and so is every quotient. Times
without an offset are in UTC.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.expressions.arrow_evaluator import (
    MAX_DIGITS,
    Node,
    ValueKind,
    evaluate,
    like_to_regex,
    num_digits,
)


class Condition(NamedTuple):
    """A condition that was read and checked. `columns` are those that it reads, in the order in which it names them."""

    text: str
    columns: tuple[str, ...]
    root: Node


@functools.lru_cache(maxsize=512)
def parse_condition(text: str, schema: pa.Schema) -> Condition:
    """The condition that `text` states about rows of `schema`.

    Raises:
        ValueError: it is no SQL, names a column that is not there, compares what cannot be compared, uses something
            that is not known here, or is no condition.
    """
    columns = referenced_columns(text)
    try:
        root = _read(parse_sql(text), schema)
        is_deep = _depth(root) > _MAX_DEPTH
    except RecursionError:
        is_deep = True
    if is_deep:
        raise ValueError(f"a condition is nested at most {_MAX_DEPTH} deep")
    if root.kind != "boolean":
        raise ValueError(f"{text!r} is {_NAMES[root.kind]}, and a condition is true or false")
    return Condition(text, columns, root)


def _depth(node: Node) -> int:
    return 1 + max(map(_depth, node.parts), default=0)


def find_violations(condition: Condition, rows: pa.RecordBatch | pa.Table) -> pa.BooleanArray:
    """True for every row where the condition is false. `rows` have the types of the schema it was read for."""
    return pc.fill_null(pc.invert(evaluate(condition.root, rows)), False)


@functools.lru_cache(maxsize=512)
def referenced_columns(text: str) -> tuple[str, ...]:
    """The columns that a condition names, in the order in which it names them.

    Raises:
        ValueError: `text` is no SQL, or names no column.
    """
    from sqlglot import exp

    names = dict.fromkeys(column.name for column in parse_sql(text).find_all(exp.Column, bfs=False))
    if not names:
        raise ValueError(f"{text!r} names no column, so it says nothing about a row")
    return tuple(names)


def parse_sql(text: str) -> Any:
    """The syntax tree of one piece of SQL.

    Raises:
        ValueError: it is none, or more than one.
    """
    import sqlglot
    from sqlglot.errors import ParseError, SqlglotError

    try:
        trees = sqlglot.parse(text, read="duckdb")
    except ParseError as failure:
        first = failure.errors[0] if failure.errors else {}
        told = first.get("description") or "it cannot be read"
        place = f", at character {first['col']} of line {first['line']}" if first.get("col") else ""
        raise ValueError(f"{text!r} is no SQL: {told}{place}") from failure
    except SqlglotError as failure:
        raise ValueError(f"{text!r} is no SQL: {failure}") from failure
    except RecursionError as failure:
        raise ValueError(f"{text[:57]}... is nested too deeply") from failure
    if len(trees) != 1 or trees[0] is None:
        raise ValueError(f"{text!r} is not one piece of SQL")
    return trees[0]


_NAMES: dict[ValueKind, str] = {
    "integer": "a whole number",
    "number": "a real number",
    "string": "text",
    "boolean": "true or false",
    "date": "a date",
    "timestamp": "a time",
    "null": "NULL",
    "array": "an array",
}
_NUMBERS = ("integer", "number")
_MAX_DEPTH = 100


def _read(tree: Any, schema: pa.Schema) -> Node:
    """The checked form of one part of the syntax tree."""
    name = type(tree).__name__
    if name not in _READERS:
        shown = tree.name if name == "Anonymous" else tree.key
        known = "COALESCE, ABS, LENGTH, LOWER, UPPER, TRIM, CASE, LIKE, IN, BETWEEN, IS NULL, AND, OR, NOT, + - * / %"
        raise ValueError(f"{_sql(tree)} uses {shown.upper()}, which is not known here; there are {known}")
    reader, allowed = _READERS[name]
    extra = [key for key, value in tree.args.items() if value and key not in allowed]
    if extra:
        raise ValueError(f"{_sql(tree)} uses {', '.join(extra)} of {tree.key.upper()}, which is not known here")
    return reader(tree, schema)


def _sql(tree: Any) -> str:
    text: str = tree.sql(dialect="duckdb", comments=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _column(tree: Any, schema: pa.Schema) -> Node:
    name = tree.name
    if name not in schema.names:
        alike = [known for known in schema.names if known.lower() == name.lower()]
        close = alike or difflib.get_close_matches(name, schema.names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(schema.names)}"
        raise ValueError(f"there is no column {name}; {hint}")
    arrow_type = schema.field(name).type
    kind = _kind_of(arrow_type)
    if kind != "integer":
        return Node("column", kind, value=name)
    bits = arrow_type.bit_width
    is_signed = pa.types.is_signed_integer(arrow_type)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    return Node("column", kind, value=name, low=low, high=high)


def _kind_of(arrow_type: pa.DataType) -> ValueKind:
    if pa.types.is_integer(arrow_type):
        return "integer"
    if pa.types.is_floating(arrow_type):
        return "number"
    if pa.types.is_string(arrow_type):
        return "string"
    if pa.types.is_boolean(arrow_type):
        return "boolean"
    if pa.types.is_timestamp(arrow_type):
        return "timestamp"
    return "date" if pa.types.is_date(arrow_type) else "array"


def _literal(tree: Any, schema: pa.Schema) -> Node:
    text = tree.this
    if tree.is_string:
        return Node("literal", "string", value=text)
    if re.fullmatch(r"\d+", text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"{text} has more than {MAX_DIGITS} digits")
        return Node("literal", "integer", value=int(text), low=int(text), high=int(text))
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond every float64")
    return Node("literal", "number", value=number)


def _cast(tree: Any, schema: pa.Schema) -> Node:
    wanted = tree.args["to"].this.name
    text = tree.this.this if type(tree.this).__name__ == "Literal" and tree.this.is_string else None
    if text is None or not (wanted == "DATE" or wanted.startswith("TIMESTAMP") or wanted == "DATETIME"):
        raise ValueError(f"{_sql(tree)}: only a text can be cast, to DATE or TIMESTAMP")
    try:
        if wanted == "DATE":
            return Node("literal", "date", value=date.fromisoformat(text))
        moment = datetime.fromisoformat(text)
    except ValueError as failure:
        raise ValueError(f"{text!r} is no {wanted.lower()} of the calendar: {failure}") from failure
    return Node("literal", "timestamp", value=moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)


def _arithmetic(tree: Any, schema: pa.Schema) -> Node:
    operation = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%"}[type(tree).__name__]
    left, right = parts = tuple(_operand(part, schema, _NUMBERS) for part in (tree.this, tree.expression))
    if operation == "/" or "number" in (left.kind, right.kind):
        return Node(operation, "number", parts)
    if operation == "%":
        most = min(max(abs(left.low), abs(left.high)), max(abs(right.low), abs(right.high), 1) - 1)
        low, high = -most if left.low < 0 else 0, most if left.high > 0 else 0
        return Node(operation, "integer", parts, low=low, high=high)
    ends = {
        "+": (left.low + right.low, left.high + right.high),
        "-": (left.low - right.high, left.high - right.low),
        "*": tuple(a * b for a in (left.low, left.high) for b in (right.low, right.high)),
    }[operation]
    node = Node(operation, "integer", parts, low=min(ends), high=max(ends))
    width = num_digits(left) + num_digits(right) if operation == "*" and node.is_long else num_digits(node)
    if width > MAX_DIGITS:
        raise ValueError(f"{_sql(tree)} may have more than {MAX_DIGITS} digits; multiply by 1.0 to have it rounded")
    return node


def _negative(tree: Any, schema: pa.Schema) -> Node:
    part = _operand(tree.this, schema, _NUMBERS)
    if type(tree).__name__ == "Neg":
        return Node("negate", part.kind, (part,), low=-part.high, high=-part.low)
    least = 0 if part.low <= 0 <= part.high else min(abs(part.low), abs(part.high))
    return Node("abs", part.kind, (part,), low=least, high=max(abs(part.low), abs(part.high)))


def _operand(tree: Any, schema: pa.Schema, kinds: tuple[str, ...]) -> Node:
    """A part that is of one of `kinds`."""
    node = _read(tree, schema)
    if node.kind not in kinds:
        wanted = " or ".join(_NAMES[kind] for kind in _NAMES if kind in kinds)
        raise ValueError(f"{_sql(tree)} is {_NAMES[node.kind]}, where {wanted} is needed")
    return node


def _comparison(tree: Any, schema: pa.Schema) -> Node:
    operation = {"EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}[type(tree).__name__]
    return _compared(operation, tree.this, tree.expression, schema)


def _compared(operation: str, left_tree: Any, right_tree: Any, schema: pa.Schema) -> Node:
    left, right = _read(left_tree, schema), _read(right_tree, schema)
    for node, tree in ((left, left_tree), (right, right_tree)):
        if node.kind in ("null", "array"):
            advice = "IS NULL asks for it" if node.kind == "null" else "state limits of its items instead"
            raise ValueError(f"{_sql(tree)} is {_NAMES[node.kind]}, which cannot be compared; {advice}")
    both = {left.kind, right.kind}
    if len(both) > 1 and not both <= set(_NUMBERS):
        hint = ""
        if "string" in both and both & {"date", "timestamp"}:
            hint = "; write a date as DATE '2024-02-29' and a time as TIMESTAMP '2024-02-29 12:00:00'"
        sides = f"{_sql(left_tree)}, {_NAMES[left.kind]}, with {_sql(right_tree)}, {_NAMES[right.kind]}"
        raise ValueError(f"the condition compares {sides}{hint}")
    if left.kind == "boolean" and operation not in ("=", "<>"):
        raise ValueError(f"{_sql(left_tree)} is true or false, and neither is more than the other")
    return Node(operation, "boolean", (left, right))


def _logic(tree: Any, schema: pa.Schema) -> Node:
    trees = []
    one = tree
    while type(one) is type(tree):  # a AND b AND c is a tree as deep as it is long
        trees.append(one.expression)
        one = one.this
    parts = tuple(_operand(part, schema, ("boolean", "null")) for part in (one, *reversed(trees)))
    return Node(type(tree).__name__.lower(), "boolean", parts)


def _not(tree: Any, schema: pa.Schema) -> Node:
    return Node("not", "boolean", (_operand(tree.this, schema, ("boolean",)),))


def _is(tree: Any, schema: pa.Schema) -> Node:
    if type(tree.expression).__name__ != "Null":
        raise ValueError(f"{_sql(tree)}: IS is for NULL; use = for other values")
    return Node("is null", "boolean", (_read(tree.this, schema),))


def _in(tree: Any, schema: pa.Schema) -> Node:
    found = tuple(_compared("=", tree.this, one, schema) for one in tree.expressions)
    return found[0] if len(found) == 1 else Node("or", "boolean", found)


def _between(tree: Any, schema: pa.Schema) -> Node:
    low = _compared(">=", tree.this, tree.args["low"], schema)
    high = _compared("<=", tree.this, tree.args["high"], schema)
    return Node("and", "boolean", (low, high))


def _like(tree: Any, schema: pa.Schema) -> Node:
    pattern = _read(tree.expression, schema)
    if pattern.operation != "literal" or pattern.kind != "string":
        raise ValueError(f"{_sql(tree)}: the pattern of LIKE is a text in quotes")
    node = Node("like", "boolean", (_operand(tree.this, schema, ("string",)),), value=like_to_regex(pattern.value))
    return Node("not", "boolean", (node,)) if tree.args.get("negate") else node


def _coalesce(tree: Any, schema: pa.Schema) -> Node:
    parts = tuple(_read(part, schema) for part in (tree.this, *tree.expressions))
    return _united("coalesce", parts, parts, tree)


def _case(tree: Any, schema: pa.Schema) -> Node:
    parts: list[Node] = []
    for branch in tree.args["ifs"]:
        if tree.this is None:
            parts.append(_operand(branch.this, schema, ("boolean",)))
        else:
            parts.append(_compared("=", tree.this, branch.this, schema))
        parts.append(_read(branch.args["true"], schema))
    default = tree.args.get("default")
    parts.append(Node("literal", "null") if default is None else _read(default, schema))
    return _united("case", tuple(parts), (*parts[1:-1:2], parts[-1]), tree)


def _united(operation: str, parts: tuple[Node, ...], values: tuple[Node, ...], tree: Any) -> Node:
    """A node that has the value of one of `values`, so that they need a kind in common."""
    kinds = {value.kind for value in values if value.kind != "null"}
    if not kinds:
        return Node(operation, "null", parts)
    if "array" in kinds or (len(kinds) > 1 and not kinds <= set(_NUMBERS)):
        names = " and ".join(_NAMES[kind] for kind in _NAMES if kind in kinds)
        raise ValueError(f"{_sql(tree)} gives {names}, and it can give values of one type only")
    kind: ValueKind = "number" if "number" in kinds else next(iter(kinds))
    whole = [value for value in values if value.kind == "integer"] or [Node("literal", "null")]
    return Node(operation, kind, parts, low=min(one.low for one in whole), high=max(one.high for one in whole))


def _of_text(tree: Any, schema: pa.Schema) -> Node:
    operation = tree.key
    part = _operand(tree.this, schema, ("string",))
    if operation == "length":
        return Node("length", "integer", (part,), low=0, high=2**31)
    return Node(operation, "string", (part,))


_Reader = Callable[[Any, pa.Schema], Node]
_BOTH = ("this", "expression")
# For each class of the syntax tree who reads it, and the arguments that are understood.
_READERS: dict[str, tuple[_Reader, tuple[str, ...]]] = {
    "Column": (_column, ("this",)),
    "Literal": (_literal, ("this", "is_string")),
    "Boolean": (lambda tree, schema: Node("literal", "boolean", value=bool(tree.this)), ("this",)),
    "Null": (lambda tree, schema: Node("literal", "null"), ()),
    "Paren": (lambda tree, schema: _read(tree.this, schema), ("this",)),
    "Cast": (_cast, ("this", "to")),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod"), (_arithmetic, _BOTH)),
    **dict.fromkeys(("Neg", "Abs"), (_negative, ("this",))),
    **dict.fromkeys(("EQ", "NEQ", "LT", "LTE", "GT", "GTE"), (_comparison, _BOTH)),
    **dict.fromkeys(("And", "Or"), (_logic, _BOTH)),
    "Not": (_not, ("this",)),
    "Is": (_is, _BOTH),
    "In": (_in, ("this", "expressions")),
    "Between": (_between, ("this", "low", "high")),
    "Like": (_like, (*_BOTH, "negate")),
    "Coalesce": (_coalesce, ("this", "expressions")),
    "Case": (_case, ("this", "ifs", "default")),
    **dict.fromkeys(("Length", "Lower", "Upper", "Trim"), (_of_text, ("this",))),
}
