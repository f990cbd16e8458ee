"""The syntax tree of a checked expression, as evaluators read it."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import pyarrow as pa

ValueKind = Literal["integer", "number", "string", "boolean", "date", "timestamp", "null", "array"]
MAX_DIGITS = 75  # Arrow's decimals have 76, and a sum needs one more than its parts
MIN_INT64, MAX_INT64 = -(2**63), 2**63 - 1
_INT64_DIGITS = 19  # Arrow casts an int64 only to a decimal with at least this many digits

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
    """A part of an expression. `low` and `high` are the inclusive limits of an integer."""

    operation: str
    kind: ValueKind
    parts: tuple[Node, ...] = ()
    value: Any = None  # a literal's value, a column's name, or a regular expression
    low: int = 0
    high: int = 0

    @property
    def is_long(self) -> bool:
        """True for an integer whose limits exceed 64 bits."""
        return self.kind == "integer" and (self.low < MIN_INT64 or self.high > MAX_INT64)

    @property
    def arrow_type(self) -> pa.DataType:
        return decimal_type(self) if self.is_long else _TYPES[self.kind]


def num_digits(node: Node) -> int:
    """The number of decimal digits that hold every integer of `node`, at least as many as int64 has."""
    return max(_INT64_DIGITS, len(str(max(abs(node.low), abs(node.high)))))


def decimal_type(*nodes: Node) -> pa.DataType:
    """The decimal type that holds every integer of `nodes`."""
    return pa.decimal256(max(num_digits(node) for node in nodes), 0)


def node_depth(node: Node) -> int:
    return 1 + max(map(node_depth, node.parts), default=0)


def like_to_regex(pattern: str) -> str:
    """A LIKE pattern as a regular expression of RE2: % stands for any text and _ for one character."""
    regex = "".join({"%": ".*", "_": "."}.get(character, re.escape(character)) for character in pattern)
    return rf"(?s)\A{regex}\z"
