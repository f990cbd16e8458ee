"""Plans the key: the column that identifies a row, or a number that is added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.tasks.scaffolding.planning.input_planning import is_row_number, split_words
from bloomery.tasks.scaffolding.profiling.column_names import unused_name
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile

_NO_KEY = "no column is unique and named, counted or coded like an identifier"
_MIN_CODE_LENGTH, _MAX_KEY_LENGTH = 4, 200  # characters of a key
_KEY_WORDS = frozenset({"id", "key", "uuid", "guid", "no", "nr", "number", "index", "row", "rowid", "path", "filename"})


class KeyPlan(NamedTuple):
    """The column that identifies a row, and why; `is_added` where the source has none and rows get numbers."""

    name: str
    is_added: bool
    reason: str


def plan_key(profile: SourceProfile, names: dict[str, str], requested: str | None, reserved: Sequence[str]) -> KeyPlan:
    """Returns the key: a column that is `requested`, or is unique and looks like an identifier; else one is added.

    Args:
        names: the contract's names of the source's columns.
        reserved: columns that cannot be the key, such as the label.

    Raises:
        DataUnfit: the requested column is not unique, or not of text or whole numbers.
    """
    if requested is not None:
        name, column = requested, profile.existing_column(requested)
        if name in reserved or not column.is_unique or column.logical_type not in ("integer", "string"):
            counts = f"{column.num_missing} missing and {column.num_distinct:,} distinct values"
            raise DataUnfit(
                f"column {name} cannot be the key: it is {column.logical_type} with {counts} in {column.num_rows:,} "
                "rows",
                required="a column of text or whole numbers with a unique value in every row",
                where="--key",
                remedy="choose another column, or omit --key: then rows get numbers",
            )
        return KeyPlan(name, is_added=False, reason="as requested")
    candidates = [
        column
        for column in profile.columns
        if column.is_unique and column.logical_type in ("integer", "string") and column.name not in reserved
    ]
    for reason, is_key in _KEY_SIGNS:
        for column in candidates:
            if is_key(column):
                return KeyPlan(column.name, is_added=False, reason=reason)
    name = unused_name("row_id", [*names, *names.values()])
    return KeyPlan(name, is_added=True, reason=_NO_KEY)


def _is_named_like_key(column: ColumnProfile) -> bool:
    return bool(_KEY_WORDS & set(split_words(column.name))) and (column.max_length or 0) <= _MAX_KEY_LENGTH


def _is_code(column: ColumnProfile) -> bool:
    """Whether the texts are of one length, as serial numbers and hashes are, but free text is not."""
    shortest, longest = column.min_length or 0, column.max_length or 0
    return column.logical_type == "string" and _MIN_CODE_LENGTH <= shortest == longest <= _MAX_KEY_LENGTH


# What makes a complete and unique column a key, the surest sign first. Measurements may be unique by chance.
_KEY_SIGNS: tuple[tuple[str, Callable[[ColumnProfile], bool]], ...] = (
    ("it is unique and has the name of an identifier", _is_named_like_key),
    ("it numbers the rows", is_row_number),
    ("its texts are unique and of one length", _is_code),
)
