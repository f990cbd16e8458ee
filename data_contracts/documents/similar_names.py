"""Suggestions for a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest_names(name: str, names: Iterable[str]) -> str:
    """Returns `; did you mean …?` with up to three similar names, or nothing. Upper and lower case count as equal."""
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
    return f"; did you mean {' or '.join(by_lower_case[match] for match in matches)}?" if matches else ""
