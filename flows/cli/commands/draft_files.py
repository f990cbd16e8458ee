"""The files that `bloomery init` writes: their names, their paths, and both or none of them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import BloomeryError, RecipeInvalid, StateUnwritable
from bloomery.data_contracts.recipe_sections.source_paths import source_scheme


def require_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name):
        raise RecipeInvalid(
            f"{name!r} is not a valid model name",
            required="at most 41 lowercase letters, digits and dashes, a letter first",
            where="NAME",
            remedy=_suggest_name(name),
        )


def _suggest_name(name: str) -> str:
    """Returns what to do about an invalid name: use the valid one that is most like it, if there is one."""
    similar = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:41].rstrip("-")
    return f"give another name, such as {similar}" if similar else "give another name"


def require_absent(paths: Sequence[Path], force: bool) -> None:
    existing = [str(path) for path in paths if path.exists()]
    if existing and not force:
        raise StateUnwritable(
            f"{' and '.join(existing)} {'exists' if len(existing) == 1 else 'exist'} already",
            required="no file of that name, since it may have been edited",
            where=str(paths[0].parent.absolute()),
            remedy="give another NAME or --output, or replace it with --force",
        )


def relative_paths(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the options with every path below `folder` relative to it."""

    def relative(path: str) -> str:
        is_below = source_scheme(path) is None and Path(path).is_relative_to(folder)
        return Path(path).relative_to(folder).as_posix() if is_below else path

    converters: dict[str, Callable[[Any], Any]] = {
        "source": relative,
        "labels": relative,
        "folder": relative,
        "media": lambda columns: {name: relative_paths(column, folder) for name, column in columns.items()},
        "sources": lambda sources: [relative_paths(source, folder) for source in sources],
    }
    return {name: converters[name](value) if name in converters else value for name, value in options.items()}


def write_files(texts: dict[Path, str], folder: Path) -> None:
    """Writes all files or none.

    Raises:
        StateUnwritable: the folder cannot be written.
        BloomeryError: contract or recipe cannot be read. Both are kept, to be edited.
    """
    from bloomery.flows.recipe.recipe import read_recipe

    failure: BloomeryError | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".init-") as scratch:
            for path, text in texts.items():
                (Path(scratch) / path.name).write_text(text, encoding="utf-8")
            try:
                read_recipe(str(Path(scratch) / [*texts][-1].name))
            except BloomeryError as error:
                failure = _to_draft_error(error, [*texts], scratch)
            for path in texts:
                (Path(scratch) / path.name).replace(path)
    except OSError as error:
        raise StateUnwritable(
            f"the drafts cannot be written: {error.strerror or error}",
            required="a writable folder",
            where=str(folder.absolute()),
            remedy="give another --output",
        ) from error
    if failure is not None:
        raise failure


def _to_draft_error(error: BloomeryError, paths: Sequence[Path], scratch: str) -> BloomeryError:
    """Returns the error of a draft that is kept, with its path in place of that in the folder `scratch`."""
    return type(error)(
        f"the draft cannot run yet: {error.found}".replace(scratch, str(paths[0].parent)),
        required=error.required,
        where=error.where.replace(scratch, str(paths[0].parent)),
        remedy=f"{' and '.join(map(str, paths))} are written: edit them, then run `bloomery check {paths[-1]}`",
    )
