"""Quotes names and texts for SQL, for DuckDB and Spark alike."""

from __future__ import annotations


def quote_name(name: str) -> str:
    """Returns the name of a column or table as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_text(value: str) -> str:
    """Returns a text as a literal."""
    return "'" + value.replace("'", "''") + "'"
