"""A lock on a folder of private files, so that one process at a time changes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from bloomery.data_contracts.errors import StateUnwritable


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Creates `folder` and holds its lock, so that only this process changes files in it.

    Raises:
        StateUnwritable: the folder cannot be created, or a file in it cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as failure:
        raise StateUnwritable(
            f"keys cannot be stored: {failure.strerror or failure}",
            required="a folder that this user may write",
            where=str(failure.filename or folder),
            remedy="correct its permissions, or set BLOOMERY_HOME to another folder",
        ) from failure
