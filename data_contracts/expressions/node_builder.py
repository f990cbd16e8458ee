"""Builds the nodes of an expression from sqlglot's syntax tree, and checks them against the columns' types."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.expressions.nodes import MAX_DIGITS, Node, ValueKind, like_to_regex, num_digits
from bloomery.data_contracts.expressions.sql import quote_name

KIND_NAMES: dict[ValueKind, str] = {
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
_SUPPORTED = "COALESCE, ABS, LENGTH, LOWER, UPPER, TRIM, CASE, LIKE, IN, BETWEEN, IS NULL, AND, OR, NOT, + - * / %"


def build_node(tree: Any, schema: pa.Schema) -> Node:
    """The checked node of one part of the syntax tree.

    Raises:
        ValueError: it names an unknown column, has operands of the wrong type, or uses unsupported syntax.
    """
    name = type(tree).__name__
    if name not in _BUILDERS:
        function = tree.name if name == "Anonymous" else tree.key
        raise ValueError(f"{_sql(tree)} uses {function.upper()}, which is not supported; supported are {_SUPPORTED}")
    if name == "Column" and tree.table:
        name_in_quotes = quote_name(".".join(part.name for part in tree.parts))
        raise ValueError(f"{_sql(tree)} names a table; a column with points in its name is written as {name_in_quotes}")
    builder, supported = _BUILDERS[name]
    extra = [key for key, value in tree.args.items() if value and key not in supported]
    if extra:
        raise ValueError(f"{_sql(tree)} uses {', '.join(extra)} of {tree.key.upper()}, which is not supported")
    return builder(tree, schema)


def _sql(tree: Any) -> str:
    text: str = tree.sql(dialect="duckdb", comments=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _column(tree: Any, schema: pa.Schema) -> Node:
    name = tree.name
    if name not in schema.names:
        equal = [column for column in schema.names if column.lower() == name.lower()]
        similar = equal or difflib.get_close_matches(name, schema.names, n=1)
        hint = f"did you mean {_as_written(similar[0])}?" if similar else f"there are {', '.join(schema.names)}"
        raise ValueError(f"there is no column {name}; {hint}")
    arrow_type = schema.field(name).type
    kind = _kind_of(arrow_type)
    if kind != "integer":
        return Node("column", kind, value=name)
    bits = arrow_type.bit_width
    is_signed = pa.types.is_signed_integer(arrow_type)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    return Node("column", kind, value=name, low=low, high=high)


def _as_written(name: str) -> str:
    """The name as it is written in a condition: in quotes, unless it is plain."""
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else quote_name(name)


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
            raise ValueError(f"{text} has more digits than the supported {MAX_DIGITS}")
        return Node("literal", "integer", value=int(text), low=int(text), high=int(text))
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is larger than any float64")
    return Node("literal", "number", value=number)


def _cast(tree: Any, schema: pa.Schema) -> Node:
    target = tree.args["to"].this.name
    text = tree.this.this if type(tree.this).__name__ == "Literal" and tree.this.is_string else None
    if text is None or not (target == "DATE" or target.startswith("TIMESTAMP") or target == "DATETIME"):
        raise ValueError(f"{_sql(tree)}: only a quoted text can be cast, and only to DATE or TIMESTAMP")
    try:
        if target == "DATE":
            return Node("literal", "date", value=date.fromisoformat(text))
        moment = datetime.fromisoformat(text)
    except ValueError as failure:
        raise ValueError(f"{text!r} is not a valid {target.lower()}: {failure}") from failure
    return Node("literal", "timestamp", value=moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment)


def _arithmetic(tree: Any, schema: pa.Schema) -> Node:
    operation = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%"}[type(tree).__name__]
    left, right = parts = tuple(_operand(part, schema, _NUMBERS) for part in (tree.this, tree.expression))
    if operation == "/" or "number" in (left.kind, right.kind):
        return Node(operation, "number", parts)
    if operation == "%":
        limit = min(max(abs(left.low), abs(left.high)), max(abs(right.low), abs(right.high), 1) - 1)
        low, high = -limit if left.low < 0 else 0, limit if left.high > 0 else 0
        return Node(operation, "integer", parts, low=low, high=high)
    ends = {
        "+": (left.low + right.low, left.high + right.high),
        "-": (left.low - right.high, left.high - right.low),
        "*": tuple(a * b for a in (left.low, left.high) for b in (right.low, right.high)),
    }[operation]
    node = Node(operation, "integer", parts, low=min(ends), high=max(ends))
    width = num_digits(left) + num_digits(right) if operation == "*" and node.is_long else num_digits(node)
    if width > MAX_DIGITS:
        raise ValueError(f"{_sql(tree)} may have more than {MAX_DIGITS} digits; multiply by 1.0 to compute in float64")
    return node


def _sign(tree: Any, schema: pa.Schema) -> Node:
    part = _operand(tree.this, schema, _NUMBERS)
    if type(tree).__name__ == "Neg":
        return Node("negate", part.kind, (part,), low=-part.high, high=-part.low)
    low = 0 if part.low <= 0 <= part.high else min(abs(part.low), abs(part.high))
    return Node("abs", part.kind, (part,), low=low, high=max(abs(part.low), abs(part.high)))


def _operand(tree: Any, schema: pa.Schema, kinds: tuple[str, ...]) -> Node:
    """The node of a part that must have one of `kinds`."""
    node = build_node(tree, schema)
    if node.kind not in kinds:
        required = " or ".join(KIND_NAMES[kind] for kind in KIND_NAMES if kind in kinds)
        raise ValueError(f"{_sql(tree)} is {KIND_NAMES[node.kind]}, but must be {required}")
    return node


def _comparison(tree: Any, schema: pa.Schema) -> Node:
    operation = {"EQ": "=", "NEQ": "<>", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}[type(tree).__name__]
    return _compare(operation, tree.this, tree.expression, schema)


def _compare(operation: str, left_tree: Any, right_tree: Any, schema: pa.Schema) -> Node:
    left, right = build_node(left_tree, schema), build_node(right_tree, schema)
    for node, tree in ((left, left_tree), (right, right_tree)):
        if node.kind in ("null", "array"):
            advice = "use IS NULL" if node.kind == "null" else "set limits on its items instead"
            raise ValueError(f"{_sql(tree)} is {KIND_NAMES[node.kind]}, which cannot be compared; {advice}")
    kinds = {left.kind, right.kind}
    if len(kinds) > 1 and not kinds <= set(_NUMBERS):
        hint = ""
        if "string" in kinds and kinds & {"date", "timestamp"}:
            hint = "; write a date as DATE '2024-02-29' and a time as TIMESTAMP '2024-02-29 12:00:00'"
        sides = f"{_sql(left_tree)}, {KIND_NAMES[left.kind]}, with {_sql(right_tree)}, {KIND_NAMES[right.kind]}"
        raise ValueError(f"the condition compares {sides}{hint}")
    if left.kind == "boolean" and operation not in ("=", "<>"):
        raise ValueError(f"{_sql(left_tree)} is true or false, which can only be compared by = and <>")
    return Node(operation, "boolean", (left, right))


def _logic(tree: Any, schema: pa.Schema) -> Node:
    trees = []
    first = tree
    while type(first) is type(tree):  # sqlglot nests a AND b AND c to the left; one node has all parts
        trees.append(first.expression)
        first = first.this
    parts = tuple(_operand(part, schema, ("boolean", "null")) for part in (first, *reversed(trees)))
    return Node(type(tree).__name__.lower(), "boolean", parts)


def _not(tree: Any, schema: pa.Schema) -> Node:
    return Node("not", "boolean", (_operand(tree.this, schema, ("boolean",)),))


def _is(tree: Any, schema: pa.Schema) -> Node:
    if type(tree.expression).__name__ != "Null":
        raise ValueError(f"{_sql(tree)}: IS is supported only with NULL; compare other values by =")
    return Node("is null", "boolean", (build_node(tree.this, schema),))


def _in(tree: Any, schema: pa.Schema) -> Node:
    comparisons = tuple(_compare("=", tree.this, value, schema) for value in tree.expressions)
    return comparisons[0] if len(comparisons) == 1 else Node("or", "boolean", comparisons)


def _between(tree: Any, schema: pa.Schema) -> Node:
    low = _compare(">=", tree.this, tree.args["low"], schema)
    high = _compare("<=", tree.this, tree.args["high"], schema)
    return Node("and", "boolean", (low, high))


def _like(tree: Any, schema: pa.Schema) -> Node:
    pattern = build_node(tree.expression, schema)
    if pattern.operation != "literal" or pattern.kind != "string":
        raise ValueError(f"{_sql(tree)}: the pattern of LIKE must be a quoted text")
    node = Node("like", "boolean", (_operand(tree.this, schema, ("string",)),), value=like_to_regex(pattern.value))
    return Node("not", "boolean", (node,)) if tree.args.get("negate") else node


def _coalesce(tree: Any, schema: pa.Schema) -> Node:
    parts = tuple(build_node(part, schema) for part in (tree.this, *tree.expressions))
    return _combine("coalesce", parts, parts, tree)


def _case(tree: Any, schema: pa.Schema) -> Node:
    parts: list[Node] = []
    for branch in tree.args["ifs"]:
        if tree.this is None:
            parts.append(_operand(branch.this, schema, ("boolean",)))
        else:
            parts.append(_compare("=", tree.this, branch.this, schema))
        parts.append(build_node(branch.args["true"], schema))
    default = tree.args.get("default")
    parts.append(Node("literal", "null") if default is None else build_node(default, schema))
    return _combine("case", tuple(parts), (*parts[1:-1:2], parts[-1]), tree)


def _combine(operation: str, parts: tuple[Node, ...], values: tuple[Node, ...], tree: Any) -> Node:
    """A node with the value of one of `values`, which must have a kind in common."""
    kinds = {value.kind for value in values if value.kind != "null"}
    if not kinds:
        return Node(operation, "null", parts)
    if "array" in kinds or (len(kinds) > 1 and not kinds <= set(_NUMBERS)):
        names = " and ".join(KIND_NAMES[kind] for kind in KIND_NAMES if kind in kinds)
        raise ValueError(f"{_sql(tree)} gives {names}, but must give values of one type only")
    kind: ValueKind = "number" if "number" in kinds else next(iter(kinds))
    integers = [value for value in values if value.kind == "integer"] or [Node("literal", "null")]
    low, high = min(value.low for value in integers), max(value.high for value in integers)
    return Node(operation, kind, parts, low=low, high=high)


def _text_function(tree: Any, schema: pa.Schema) -> Node:
    operation = tree.key
    part = _operand(tree.this, schema, ("string", "array") if operation == "length" else ("string",))
    if operation == "length":
        return Node("length", "integer", (part,), low=0, high=2**31)
    return Node(operation, "string", (part,))


_Builder = Callable[[Any, pa.Schema], Node]
_BOTH = ("this", "expression")
# The function that builds the node, and the supported arguments, for each class of sqlglot.
_BUILDERS: dict[str, tuple[_Builder, tuple[str, ...]]] = {
    "Column": (_column, ("this",)),
    "Literal": (_literal, ("this", "is_string")),
    "Boolean": (lambda tree, schema: Node("literal", "boolean", value=bool(tree.this)), ("this",)),
    "Null": (lambda tree, schema: Node("literal", "null"), ()),
    "Paren": (lambda tree, schema: build_node(tree.this, schema), ("this",)),
    "Cast": (_cast, ("this", "to")),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod"), (_arithmetic, _BOTH)),
    **dict.fromkeys(("Neg", "Abs"), (_sign, ("this",))),
    **dict.fromkeys(("EQ", "NEQ", "LT", "LTE", "GT", "GTE"), (_comparison, _BOTH)),
    **dict.fromkeys(("And", "Or"), (_logic, _BOTH)),
    "Not": (_not, ("this",)),
    "Is": (_is, _BOTH),
    "In": (_in, ("this", "expressions")),
    "Between": (_between, ("this", "low", "high")),
    "Like": (_like, (*_BOTH, "negate")),
    "Coalesce": (_coalesce, ("this", "expressions")),
    "Case": (_case, ("this", "ifs", "default")),
    **dict.fromkeys(("Length", "Lower", "Upper", "Trim"), (_text_function, ("this",))),
}
