"""YAML written by hand, so that it can have comments. Whatever a text holds, a YAML reader gives it back."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

WIDTH = 118
_LONGEST_KEY = 120  # YAML takes a key of more than 1,024 characters for no key
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def scalar(value: Any) -> str:
    """A text, number, truth value or None as YAML 1.1 reads it back."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))  # without a point it would be text
    if not isinstance(value, str):
        return str(value)
    is_plain = _PLAIN.fullmatch(value) is not None and yaml.safe_load(value) == value
    return value if is_plain else quoted(value)


def quoted(text: str) -> str:
    """A text in double quotes on one line; what cannot be seen is spelt by its number."""
    return '"' + "".join(_character(one) for one in text) + '"'


def _character(one: str) -> str:
    if one in _ESCAPES:
        return _ESCAPES[one]
    if one.isprintable():
        return one
    number = ord(one)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def flow(value: Any) -> str:
    """A value on one line, in brackets and braces where it has parts."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(flow(inner) for inner in value) + "]"
    return scalar(value)


def entry(key: str, value: Any, indent: int = 0) -> list[str]:
    """`key: value` as lines; a list that is too long for one goes on in the next."""
    start = " " * indent
    named = scalar(key)
    if len(named) > _LONGEST_KEY:
        return [f"{start}? {named}", f"{start}: {flow(value)}"]
    line = f"{start}{named}: {flow(value)}"
    if len(line) <= WIDTH or not isinstance(value, list | tuple):
        return [line]
    return [f"{start}{named}: [", *_filled([flow(one) for one in value], indent + 2), f"{start}]"]


def _filled(pieces: Sequence[str], indent: int) -> list[str]:
    lines, line = [], " " * indent
    for piece in pieces:
        if len(line) + len(piece) + 1 > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = " " * indent
        line += f"{piece}, "
    return [*lines, line.rstrip()]


def comment(text: str, indent: int = 0) -> list[str]:
    """A text as lines of comment."""
    seen = "".join(one if one.isprintable() else _character(one) for one in text)
    return textwrap.wrap(
        seen,
        WIDTH,
        initial_indent=" " * indent + "# ",
        subsequent_indent=" " * indent + "# ",
        break_on_hyphens=False,
    )
