"""Names and texts as SQL writes them, in DuckDB and in Spark alike."""

from __future__ import annotations


def quote_name(name: str) -> str:
    """The name of a column or a table."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(value: str) -> str:
    """A text."""
    return "'" + value.replace("'", "''") + "'"
