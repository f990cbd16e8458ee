"""Names of columns as a contract takes them: letters, digits and underscores, and no two that an engine confuses."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence

from bloomery.data_contracts.errors import DataMissing

_TAKEN = ("_part",)  # what `prepare` calls a column of its own
_TAKEN_BESIDE_KEYS = ("x", "y", "truth", "answer", "probabilities")  # what encoded rows and answers have beside the key


def contract_names(names: Sequence[str]) -> dict[str, str]:
    """Each name as an identifier that no other has, in capital or small letters; one that is fit stays as it is."""
    found: dict[str, str] = {}
    used = set(_TAKEN)
    places = {name: place for place, name in enumerate(names, 1)}
    fit = {name: re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is not None for name in names}
    for name in sorted(names, key=lambda name: not fit[name]):  # names that are fit choose first
        plain = name if fit[name] else _plain(name) or f"column_{places[name]}"
        new, number = plain, 2
        while new.lower() in used:
            new, number = f"{plain}_{number}", number + 1
        used.add(new.lower())
        found[name] = new
    return {name: found[name] for name in names}


def rename_reserved_key(names: dict[str, str], key: str) -> dict[str, str]:
    """The names, with another one for the key where stages call a column beside it the same."""
    if names.get(key, "").lower() not in _TAKEN_BESIDE_KEYS:
        return names
    return {**names, key: unused_name(f"key_{names[key]}", [*names.values()])}


def unused_name(wanted: str, names: Sequence[str]) -> str:
    """`wanted`, with a number behind it if a column has that name already."""
    taken = {name.lower() for name in names}
    number, name = 2, wanted
    while name.lower() in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def find_column(wanted: str, names: dict[str, str], option: str) -> str:
    """The column that `wanted` means, by its name in the source or in the contract.

    Raises:
        DataMissing: there is none; the message has the likely one.
    """
    fitting = [name for name, new in names.items() if wanted in (name, name.strip(), new)]
    if fitting:
        return fitting[0]
    close = difflib.get_close_matches(wanted.lower(), [name.lower() for name in names], n=1, cutoff=0.5)
    likely = next((name for name in names if close and name.lower() == close[0]), None)
    shown = [*names][:30]
    raise DataMissing(
        f"there is no column {wanted!r}" + (f"; did you mean {likely!r}?" if likely else ""),
        required=f"one of {', '.join(shown)}" + (f" and {len(names) - 30} more" if len(names) > 30 else ""),
        where=option,
        remedy="mend the name; where the file has no header, give the names with --columns; a name that stands in "
        "the files' paths is taken from there by --path-pattern",
    )


def _plain(name: str) -> str:
    """The letters and digits of a name, without their accents."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"\W+", "_", letters, flags=re.ASCII).strip("_")
    return f"column_{plain}" if plain[:1].isdigit() else plain
