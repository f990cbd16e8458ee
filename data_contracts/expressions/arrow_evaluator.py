"""The value of an expression on every row of a batch, with SQL's semantics.

Integers are exact: one that may exceed 64 bits is computed with up to 75 digits. Other numbers are float64. A division
by zero is null.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.expressions.nodes import MAX_DIGITS, Node, decimal_type


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


def _evaluate_as(node: Node, rows: pa.RecordBatch | pa.Table, target: Node) -> pa.Array:
    """The value of `node` in the type of `target`, which can hold it."""
    values = evaluate(node, rows)
    if node.kind == "integer" and target.kind == "number":
        return _to_float(values)
    return values.cast(target.arrow_type)


def _to_float(values: pa.Array) -> pa.Array:
    """The nearest float64 of each integer."""
    if pa.types.is_decimal(values.type):
        return pa.array([None if value is None else float(int(value)) for value in values.to_pylist()], pa.float64())
    return values.cast(pa.float64(), safe=False)


def _arithmetic(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    compute = {"+": pc.add, "-": pc.subtract, "*": pc.multiply}[node.operation]
    if node.kind == "number":
        return compute(*(_evaluate_as(part, rows, node) for part in node.parts))
    left, right = (evaluate(part, rows) for part in node.parts)
    if not (node.is_long or any(part.is_long for part in node.parts)):
        return compute(left, right)
    if node.operation == "*":
        wide = compute(left.cast(decimal_type(node.parts[0])), right.cast(decimal_type(node.parts[1])))
    else:
        kind = decimal_type(node, *node.parts)
        wide = compute(left.cast(kind), right.cast(kind))
    return wide.cast(node.arrow_type)


def _quotient(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """`/` gives a float64; `%` has the sign of the dividend, as in C and in most SQL engines."""
    if any(part.is_long for part in node.parts) and node.operation == "%" and node.kind == "integer":
        pairs = zip(*(evaluate(part, rows).to_pylist() for part in node.parts), strict=True)
        return pa.array([_remainder(a, b) for a, b in pairs], pa.decimal256(MAX_DIGITS, 0)).cast(node.arrow_type)
    target = Node(node.operation, node.kind)  # int64 or float64, since the parts may exceed their remainder
    left, right = (_evaluate_as(part, rows, target) for part in node.parts)
    is_defined = pc.and_(pc.and_(pc.is_valid(left), pc.is_valid(right)), pc.not_equal(right, pa.scalar(0, right.type)))
    is_defined = is_defined.fill_null(False).to_numpy(zero_copy_only=False)
    zero, one = pa.scalar(0, left.type), pa.scalar(1, right.type)
    dividend = left.fill_null(zero).to_numpy(zero_copy_only=False)
    divisor = np.where(is_defined, right.fill_null(one).to_numpy(zero_copy_only=False), 1)
    with np.errstate(all="ignore"):
        result = np.divide(dividend, divisor) if node.operation == "/" else np.fmod(dividend, divisor)
    return pa.array(result.astype(dividend.dtype), node.arrow_type, mask=~is_defined)


def _remainder(a: Any, b: Any) -> Decimal | None:
    if a is None or b is None or b == 0:
        return None
    size = abs(int(a)) % abs(int(b))
    return Decimal(size if a > 0 else -size)


def _sign(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    values = _widen_part(node, rows)
    return (pc.negate if node.operation == "negate" else pc.abs)(values).cast(node.arrow_type)


def _widen_part(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """The value of the only part, in a type that also holds the result."""
    values = evaluate(node.parts[0], rows)
    is_wide = node.kind == "integer" and (node.is_long or node.parts[0].is_long)
    return values.cast(decimal_type(node, node.parts[0])) if is_wide else values


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
            a, b = a.cast(decimal_type(left, right)), b.cast(decimal_type(left, right))
        return _COMPARE[node.operation](a, b)
    if left.kind == "number":
        return _compare_mixed(b, a, _MIRRORED.get(node.operation, node.operation))
    return _compare_mixed(a, b, node.operation)


def _compare_mixed(integers: pa.Array, floats: pa.Array, comparison: str) -> pa.Array:
    """Compares integers with floats exactly: neither is rounded."""
    if pa.types.is_decimal(integers.type):
        pairs = zip(integers.to_pylist(), floats.to_pylist(), strict=True)
        exact = _EXACT[comparison]
        return pa.array([None if a is None or b is None else exact(int(a), b) for a, b in pairs], pa.bool_())
    is_valid = pc.and_(pc.is_valid(integers), pc.is_valid(floats)).to_numpy(zero_copy_only=False)
    a = integers.fill_null(0).to_numpy()
    b = floats.fill_null(0.0).to_numpy()
    rounded = a.astype(np.float64)
    # Rounding is monotonic, so different rounded numbers decide; where they are equal, `b` is an integer.
    is_equal_rounded = rounded == b
    is_beyond = is_equal_rounded & (b >= 2.0**63)
    exact_b = np.where(is_equal_rounded & ~is_beyond, b, 0.0).astype(np.int64)
    less = np.where(is_equal_rounded, is_beyond | (a < exact_b), rounded < b)
    greater = np.where(is_equal_rounded, ~is_beyond & (a > exact_b), rounded > b)
    equal = is_equal_rounded & ~is_beyond & (a == exact_b)
    masks = {"=": equal, "<>": ~equal, "<": less, "<=": less | equal, ">": greater, ">=": greater | equal}
    return pa.array(masks[comparison], pa.bool_(), mask=~is_valid)


def _logic(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    combine = pc.and_kleene if node.operation == "and" else pc.or_kleene
    result = _evaluate_as(node.parts[0], rows, node)
    for part in node.parts[1:]:
        result = combine(result, _evaluate_as(part, rows, node))
    return result


def _case(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """The parts are condition, value, condition, value, …, and the value if no condition is true."""
    *branches, default = node.parts
    result = _evaluate_as(default, rows, node)
    pairs = list(zip(branches[::2], branches[1::2], strict=True))
    for condition, value in reversed(pairs):
        holds = evaluate(condition, rows).cast(pa.bool_()).fill_null(False)
        result = pc.if_else(holds, _evaluate_as(value, rows, node), result)
    return result


def _like(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    return pc.match_substring_regex(evaluate(node.parts[0], rows), node.value)


def _length(node: Node, rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """The number of characters of a text, or of elements of an array."""
    values = evaluate(node.parts[0], rows)
    count = pc.list_value_length if node.parts[0].kind == "array" else pc.utf8_length
    return count(values).cast(pa.int64())


_OPERATIONS: dict[str, Callable[[Node, pa.RecordBatch | pa.Table], pa.Array]] = {
    "column": _column,
    "literal": _literal,
    **dict.fromkeys(("+", "-", "*"), _arithmetic),
    **dict.fromkeys(("/", "%"), _quotient),
    **dict.fromkeys(("negate", "abs"), _sign),
    **dict.fromkeys(_COMPARE, _comparison),
    **dict.fromkeys(("and", "or"), _logic),
    "case": _case,
    "like": _like,
    "not": lambda node, rows: pc.invert(evaluate(node.parts[0], rows)),
    "is null": lambda node, rows: pc.is_null(evaluate(node.parts[0], rows)),
    "coalesce": lambda node, rows: pc.coalesce(*(_evaluate_as(part, rows, node) for part in node.parts)),
    "length": _length,
    "lower": lambda node, rows: pc.utf8_lower(evaluate(node.parts[0], rows)),
    "upper": lambda node, rows: pc.utf8_upper(evaluate(node.parts[0], rows)),
    "trim": lambda node, rows: pc.utf8_trim(evaluate(node.parts[0], rows), characters=" "),
}
