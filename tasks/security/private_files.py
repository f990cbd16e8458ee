"""Files that only their owner may read: whole or as they were before, and written by one process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from bloomery.data_contracts.errors import StateUnwritable


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that change files of `folder`, which is there afterwards.

    Raises:
        StateUnwritable: the folder cannot be made, or a file in it not be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except OSError as failure:
        raise StateUnwritable(
            f"keys cannot be kept: {failure.strerror or failure}",
            required="a folder that this user may write",
            where=str(failure.filename or folder),
            remedy="mend its permissions, or set BLOOMERY_HOME to another folder",
        ) from failure


def write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Afterwards the file is there with `content` and `mode`; nobody ever sees half of it. Call it while `locked`."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.unlink(missing_ok=True)
    # Made with its mode, so that there is no moment in which others may read it.
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    beside.replace(path)
