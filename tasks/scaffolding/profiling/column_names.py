"""The names of a source's columns, which are those of the contract, and how a user names a column."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Sequence

from bloomery.data_contracts.errors import DataMissing

_MAX_SHOWN = 30


def contract_names(names: Sequence[str]) -> dict[str, str]:
    """Returns the contract's name for each column: that of the source, or another one in place of an empty name."""
    return {name: name or unused_name(f"column_{number}", names) for number, name in enumerate(names, 1)}


def unused_name(preferred: str, names: Sequence[str]) -> str:
    """Returns `preferred`, with a number behind it if a column has that name already."""
    number, name = 2, preferred
    while name in names:
        name, number = f"{preferred}_{number}", number + 1
    return name


def matching_names(requested: str, names: Sequence[str]) -> list[str]:
    """Returns the columns of a source that `requested` names: the one of that name, or those with spaces around it."""
    return _matching_names(requested, contract_names(names))


def _matching_names(requested: str, names: dict[str, str]) -> list[str]:
    exact = [name for name, contract_name in names.items() if requested in (name, contract_name)]
    return exact or [name for name in names if requested.strip() == name.strip()]


def find_column(requested: str, names: dict[str, str], option: str) -> str:
    """Returns the source's name of a column that is named by its source or by the contract.

    Raises:
        DataMissing: there is no such column; the message suggests a similar name.
    """
    matches = _matching_names(requested, names)
    if matches:
        return matches[0]
    close_matches = difflib.get_close_matches(requested.lower(), [name.lower() for name in names], n=1, cutoff=0.5)
    suggestion = next((name for name in names if close_matches and name.lower() == close_matches[0]), None)
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    raise DataMissing(
        f"there is no column {requested!r}" + (f"; did you mean {suggestion!r}?" if suggestion else ""),
        required=f"one of {', '.join([*names][:_MAX_SHOWN])}{more}",
        where=option,
        remedy="correct the name; if the header is elsewhere, set --skip-lines, --delimiter or --quote; if its "
        "letters are wrong, --encoding; without a header, --columns; if it is in the files' paths, --path-pattern; "
        "with --unit file where each file is one sequence",
    )


def split_names(requested: Sequence[str], names: dict[str, str]) -> tuple[str, ...]:
    """Returns the names in `requested`, each once, where a text that is no column's name is a list such as `a,b,c`."""
    split: list[str] = []
    for text in requested:
        split += [text] if _matching_names(text, names) else [name.strip() for name in next(csv.reader([text]), [text])]
    return tuple(dict.fromkeys(split))


def format_names(names: Sequence[str]) -> str:
    """Returns the names as an option takes them: with commas between them, in quotes where a name needs them."""
    text = io.StringIO()
    csv.writer(text).writerow(names)
    return text.getvalue().removesuffix("\r\n")
