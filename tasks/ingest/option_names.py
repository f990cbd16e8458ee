"""Names the options that read a source: as keys of a recipe's `data`, or of the command that drafts the recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_is_drafting: ContextVar[bool] = ContextVar("is_drafting", default=False)


@contextlib.contextmanager
def drafting() -> Iterator[None]:
    """While a recipe is drafted there is none to edit, so errors name options of `bloomery init`."""
    token = _is_drafting.set(True)
    try:
        yield
    finally:
        _is_drafting.reset(token)


def option_names(*keys: str) -> str:
    """Returns the options as a user sets them, such as `--skip-lines or --quote`."""
    if _is_drafting.get():
        return _join([f"--{key.replace('_', '-')}" for key in keys])
    return f"{_join([f'`{key}`' for key in keys])} in the recipe's `data`"


def place_of_options() -> str:
    """Returns where the options are set."""
    return "the command line" if _is_drafting.get() else "the recipe's data"


def _join(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
