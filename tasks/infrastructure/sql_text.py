"""Names and texts in SQL, for DuckDB and Spark alike."""

from __future__ import annotations

import re


def column_alias(name: str) -> str:
    """Returns the name that a column has in queries: lower-case ASCII letters, digits and underscores.

    Different columns have different aliases, also where an engine ignores the case of letters, and no alias begins with
    an underscore, as the names of a query's own columns do. An alias needs no quotes.
    """
    return "data_" + re.sub(r"[^a-z0-9]", _escape, name)


def _escape(match: re.Match[str]) -> str:
    return "__" if match[0] == "_" else f"_x{ord(match[0]):x}_"


def quote_text(value: str) -> str:
    """Returns a text as a literal."""
    return "'" + value.replace("'", "''") + "'"
