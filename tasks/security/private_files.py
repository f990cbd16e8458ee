"""Files that only their owner may read, written atomically and by one process at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from bloomery.data_contracts.errors import StateUnwritable


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create `folder` and hold its lock, so that only this process changes files in it.

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


def write_private_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write the file atomically, with `mode`. Call it inside `lock_folder`."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    # Created with its mode, so that others can read it at no time.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    temporary.replace(path)
