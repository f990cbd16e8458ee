"""The value of a checked expression on every row of a batch, with the meaning that SQL gives it.

Whole numbers are exact: what may not fit into 64 bits is computed with up to 75 digits. Real numbers are float64. A
division by zero is null.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ValueKind = Literal["integer", "number", "string", "boolean", "date", "timestamp", "null", "array"]
MAX_DIGITS = 75  # Arrow's decimals have 76, and a sum needs one more than its parts
INT64 = (-(2**63), 2**63 - 1)
_LEAST_DIGITS = 19  # what Arrow wants for any int64

_TYPES: dict[ValueKind, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "string": pa.string(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "null": pa.null(),
}


class Node(NamedTuple):
    """A checked part of an expression. `low` and `high` are the limits of a whole number, both included."""

    operation: str
    kind: ValueKind
    parts: tuple[Node, ...] = ()
    value: Any = None  # a literal's value, a column's name, or a pattern
    low: int = 0
    high: int = 0

    @property
    def is_long(self) -> bool:
        """Whether this is a whole number that may not fit into 64 bits."""
        return self.kind == "integer" and not (INT64[0] <= self.low and self.high <= INT64[1])

    @property
    def arrow_type(self) -> pa.DataType:
        return _decimal(self) if self.is_long else _TYPES[self.kind]


def num_digits(node: Node) -> int:
    """How many decimal digits the whole numbers of `node` may have, and at least those of int64."""
    return max(_LEAST_DIGITS, len(str(max(abs(node.low), abs(node.high)))))


def _decimal(*nodes: Node) -> pa.DataType:
    return pa.decimal256(max(num_digits(node) for node in nodes), 0)


def evaluate(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """The value of `node` for each of `rows`, in the node's Arrow type."""
    return _OPERATIONS[node.operation](node, rows)


def _column(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    values = rows.column(node.value)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values if node.kind == "array" else values.cast(node.arrow_type)


def _literal(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    value = Decimal(node.value) if node.is_long else node.value
    return pa.repeat(pa.scalar(value, node.arrow_type), rows.num_rows)


def _part(node: Node, rows: pa.RecordBatch | pa.Table, wanted: Node) -> pa.Array:
    """The value of `node` in the type of `wanted`, which holds it."""
    values = evaluate(node, rows)
    if node.kind == "integer" and wanted.kind == "number":
        return _as_float(values)
    return values.cast(wanted.arrow_type)


def _as_float(values: pa.Array) -> pa.Array:
    """The nearest float64 of each whole number."""
    if pa.types.is_decimal(values.type):
        return pa.array([None if value is None else float(int(value)) for value in values.to_pylist()], pa.float64())
    return values.cast(pa.float64(), safe=False)


def _arithmetic(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    compute = {"+": pc.add, "-": pc.subtract, "*": pc.multiply}[node.operation]
    if node.kind == "number":
        return compute(*(_part(part, rows, node) for part in node.parts))
    left, right = (evaluate(part, rows) for part in node.parts)
    if not (node.is_long or any(part.is_long for part in node.parts)):
        return compute(left, right)
    if node.operation == "*":
        wide = compute(left.cast(_decimal(node.parts[0])), right.cast(_decimal(node.parts[1])))
    else:
        kind = _decimal(node, *node.parts)
        wide = compute(left.cast(kind), right.cast(kind))
    return wide.cast(node.arrow_type)


def _quotient(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """`/` gives a real number; `%` has the sign of what is divided, as in C and in most SQL engines."""
    if any(part.is_long for part in node.parts) and node.operation == "%" and node.kind == "integer":
        pairs = zip(*(evaluate(part, rows).to_pylist() for part in node.parts), strict=True)
        return pa.array([_remainder(a, b) for a, b in pairs], pa.decimal256(MAX_DIGITS, 0)).cast(node.arrow_type)
    wanted = Node(node.operation, node.kind)  # int64 or float64: a remainder's parts may be larger than it
    left, right = (_part(part, rows, wanted) for part in node.parts)
    is_defined = pc.and_(pc.and_(pc.is_valid(left), pc.is_valid(right)), pc.not_equal(right, pa.scalar(0, right.type)))
    is_defined = is_defined.fill_null(False).to_numpy(zero_copy_only=False)
    zero, one = pa.scalar(0, left.type), pa.scalar(1, right.type)
    top = left.fill_null(zero).to_numpy(zero_copy_only=False)
    bottom = np.where(is_defined, right.fill_null(one).to_numpy(zero_copy_only=False), 1)
    with np.errstate(all="ignore"):
        found = np.divide(top, bottom) if node.operation == "/" else np.fmod(top, bottom)
    return pa.array(found.astype(top.dtype), node.arrow_type, mask=~is_defined)


def _remainder(a: Any, b: Any) -> Decimal | None:
    if a is None or b is None or b == 0:
        return None
    size = abs(int(a)) % abs(int(b))
    return Decimal(size if a > 0 else -size)


def _negative(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    values = _widened(node, rows)
    return (pc.negate if node.operation == "negate" else pc.abs)(values).cast(node.arrow_type)


def _widened(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """The only part's value in a type that also holds the result."""
    values = evaluate(node.parts[0], rows)
    is_wide = node.kind == "integer" and (node.is_long or node.parts[0].is_long)
    return values.cast(_decimal(node, node.parts[0])) if is_wide else values


_EXACT: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _comparison(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    left, right = node.parts
    a, b = evaluate(left, rows), evaluate(right, rows)
    if left.kind == right.kind:
        if left.is_long or right.is_long:
            a, b = a.cast(_decimal(left, right)), b.cast(_decimal(left, right))
        return _COMPARE[node.operation](a, b)
    if left.kind == "number":
        return _compared(b, a, _MIRRORED.get(node.operation, node.operation))
    return _compared(a, b, node.operation)


def _compared(whole: pa.Array, real: pa.Array, comparison: str) -> pa.Array:
    """A whole number beside a real one, compared as the numbers they are: neither is rounded."""
    if pa.types.is_decimal(whole.type):
        pairs = zip(whole.to_pylist(), real.to_pylist(), strict=True)
        exact = _EXACT[comparison]
        return pa.array([None if a is None or b is None else exact(int(a), b) for a, b in pairs], pa.bool_())
    is_valid = pc.and_(pc.is_valid(whole), pc.is_valid(real)).to_numpy(zero_copy_only=False)
    a = whole.fill_null(0).to_numpy()
    b = real.fill_null(0.0).to_numpy()
    rounded = a.astype(np.float64)
    # Rounding keeps order, so where the rounded numbers differ they tell; where they are equal, `b` is whole.
    same = rounded == b
    is_beyond = same & (b >= 2.0**63)
    exact_b = np.where(same & ~is_beyond, b, 0.0).astype(np.int64)
    less = np.where(same, is_beyond | (a < exact_b), rounded < b)
    more = np.where(same, ~is_beyond & (a > exact_b), rounded > b)
    equal = same & ~is_beyond & (a == exact_b)
    found = {"=": equal, "<>": ~equal, "<": less, "<=": less | equal, ">": more, ">=": more | equal}[comparison]
    return pa.array(found, pa.bool_(), mask=~is_valid)


def _logic(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    combine = pc.and_kleene if node.operation == "and" else pc.or_kleene
    found = _part(node.parts[0], rows, node)
    for part in node.parts[1:]:
        found = combine(found, _part(part, rows, node))
    return found


def _case(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """Parts are condition, value, condition, value, …, and the value where no condition holds."""
    *branches, otherwise = node.parts
    found = _part(otherwise, rows, node)
    pairs = list(zip(branches[::2], branches[1::2], strict=True))
    for condition, value in reversed(pairs):
        holds = evaluate(condition, rows).cast(pa.bool_()).fill_null(False)
        found = pc.if_else(holds, _part(value, rows, node), found)
    return found


def _like(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    return pc.match_substring_regex(evaluate(node.parts[0], rows), node.value)


def like_to_regex(pattern: str) -> str:
    """A LIKE pattern as a regular expression of RE2: % stands for any text and _ for one character."""
    inside = "".join({"%": ".*", "_": "."}.get(one, re.escape(one)) for one in pattern)
    return rf"(?s)\A{inside}\z"


_OPERATIONS: dict[str, Callable[[Node, pa.RecordBatch | pa.Table], pa.Array]] = {
    "column": _column,
    "literal": _literal,
    **dict.fromkeys(("+", "-", "*"), _arithmetic),
    **dict.fromkeys(("/", "%"), _quotient),
    **dict.fromkeys(("negate", "abs"), _negative),
    **dict.fromkeys(_COMPARE, _comparison),
    **dict.fromkeys(("and", "or"), _logic),
    "case": _case,
    "like": _like,
    "not": lambda node, rows: pc.invert(evaluate(node.parts[0], rows)),
    "is null": lambda node, rows: pc.is_null(evaluate(node.parts[0], rows)),
    "coalesce": lambda node, rows: pc.coalesce(*(_part(part, rows, node) for part in node.parts)),
    "length": lambda node, rows: pc.utf8_length(evaluate(node.parts[0], rows)).cast(pa.int64()),
    "lower": lambda node, rows: pc.utf8_lower(evaluate(node.parts[0], rows)),
    "upper": lambda node, rows: pc.utf8_upper(evaluate(node.parts[0], rows)),
    "trim": lambda node, rows: pc.utf8_trim(evaluate(node.parts[0], rows), characters=" "),
}
