"""Column names as a contract takes them: letters, digits and underscores, and no two that an engine confuses."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence

from bloomery.data_contracts.errors import DataMissing

_RESERVED = ("_part",)  # a column of `prepare`
_RESERVED_FOR_KEYS = (
    "x",
    "y",
    "truth",
    "prediction",
    "probabilities",
)  # columns beside the key in rows and predictions
_MAX_SHOWN = 30


def contract_names(names: Sequence[str]) -> dict[str, str]:
    """Returns a valid name for each column, unique in any letter case. Valid names stay as they are."""
    new_names: dict[str, str] = {}
    used = set(_RESERVED)
    positions = {name: position for position, name in enumerate(names, 1)}
    is_valid = {name: re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None for name in names}
    for name in sorted(names, key=lambda name: not is_valid[name]):  # valid names choose first
        stem = name if is_valid[name] else _to_ascii(name) or f"column_{positions[name]}"
        candidate, number = stem, 2
        while candidate.lower() in used:
            candidate, number = f"{stem}_{number}", number + 1
        used.add(candidate.lower())
        new_names[name] = candidate
    return {name: new_names[name] for name in names}


def rename_reserved_key(names: dict[str, str], key: str) -> dict[str, str]:
    """Returns the names, with another name for the key if a stage writes a column of that name next to the key."""
    if names.get(key, "").lower() not in _RESERVED_FOR_KEYS:
        return names
    return {**names, key: unused_name(f"key_{names[key]}", [*names.values()])}


def unused_name(preferred: str, names: Sequence[str]) -> str:
    """Returns `preferred`, with a number behind it if a column has that name already."""
    used_names = {name.lower() for name in names}
    number, name = 2, preferred
    while name.lower() in used_names:
        name, number = f"{preferred}_{number}", number + 1
    return name


def matching_names(requested: str, names: Sequence[str]) -> list[str]:
    """Returns the columns of a source that `requested` names, by their name in the source or in the contract."""
    return _matching_names(requested, contract_names(names))


def _matching_names(requested: str, names: dict[str, str]) -> list[str]:
    return [name for name, contract_name in names.items() if requested in (name, name.strip(), contract_name)]


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
        "letters are wrong, --encoding; without a header, --columns; if it is in the files' paths, --path-pattern",
    )


def _to_ascii(name: str) -> str:
    """Returns the letters and digits of a name, without accents."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    stem = re.sub(r"\W+", "_", letters, flags=re.ASCII).strip("_")
    return f"column_{stem}" if stem[:1].isdigit() else stem
