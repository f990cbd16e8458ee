"""SQL as sqlglot's syntax tree."""

from __future__ import annotations

from typing import Any


def quote_name(name: str) -> str:
    """`name` as an identifier of SQL, whatever its characters."""
    return '"' + name.replace('"', '""') + '"'


def parse_sql(text: str) -> Any:
    """The syntax tree of one SQL expression or query.

    Raises:
        ValueError: `text` is not valid SQL, or not exactly one expression or query.
    """
    import sqlglot
    from sqlglot.errors import ParseError, SqlglotError

    try:
        trees = sqlglot.parse(text, read="duckdb")
    except ParseError as failure:
        first = failure.errors[0] if failure.errors else {}
        description = first.get("description") or "it cannot be parsed"
        place = f", at character {first['col']} of line {first['line']}" if first.get("col") else ""
        raise ValueError(f"{text!r} is not valid SQL: {description}{place}") from failure
    except SqlglotError as failure:
        raise ValueError(f"{text!r} is not valid SQL: {failure}") from failure
    except RecursionError as failure:
        raise ValueError(f"{text[:57]}... is nested too deeply") from failure
    if len(trees) != 1 or trees[0] is None:
        raise ValueError(f"{text!r} is not exactly one SQL expression or query")
    return trees[0]
