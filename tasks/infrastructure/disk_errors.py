"""Recognizes a full disk, a folder without write permission, and a disk or network share that no longer answers."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bloomery.data_contracts.errors import DataMissing, ShareLost, StateUnwritable

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}
_FULL_MESSAGES = (
    *("disk is full", "No space left on device"),
    *("iostream error", "] . unexpected pos "),  # of PyTorch's writer, which reports a failed write only by these
)
_LOST = {
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
}
_PAGE_BYTES = 65_536
_RUN_BYTES = 50_000_000  # the two databases take a tenth of it before the first row is read


def require_writable(home: Path, *, with_room: bool) -> None:
    """Creates the state folder if it is missing, and checks that it can be written.

    `with_room=False` does not require free space on the disk.

    Raises:
        StateUnwritable: the folder cannot be created or written, or the disk is full.
    """
    probe = home / f".probe-{os.getpid()}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"bloomery" if with_room else b"")
        probe.unlink()
        if with_room and _free_bytes(home) < _RUN_BYTES:
            raise OSError(errno.ENOSPC, f"less than {_RUN_BYTES / 1e6:.0f} MB are free")
    except OSError as failure:
        raise StateUnwritable(
            f"the state folder cannot be written: {failure.strerror or failure}",
            required=f"a folder that this user may write, on a disk with room ({_describe_free_space(home)})",
            where=str(home),
            remedy="free some space or correct the permissions, or set BLOOMERY_HOME to another folder",
        ) from failure


def disk_full_error(failure: BaseException, what: str, home: Path) -> StateUnwritable | None:
    """Returns the error to show if a full disk or a missing write permission caused `failure`, else None.

    SQLite, servers that use it, and native code report a full disk with messages of their own instead of an errno.

    Args:
        what: what could not write, as the message names it.
        home: the state folder.
    """
    cause = next((error for error in _causes(failure) if _is_unwritable(error)), None)
    path = getattr(cause, "filename", None) or home
    folder = home
    if cause is None:
        folders = (home, Path(os.environ.get("TMPDIR") or tempfile.gettempdir()))  # SQLite writes to both
        full_folder = next((item for item in folders if _free_bytes(item) <= _PAGE_BYTES), None)
        if full_folder is None:
            return None
        cause, path, folder = failure, full_folder, full_folder
    elsewhere = "" if folder == home else ", or set TMPDIR to another folder"
    return StateUnwritable(
        f"{what} could not write: {getattr(cause, 'strerror', None) or 'the disk is full'}",
        required="room on the disk and permission to write",
        where=f"{path} ({_describe_free_space(folder)})",
        remedy=f"free some space or correct the permissions{elsewhere}, then run again: finished stages are reused",
    )


def deleted_folder_error() -> DataMissing | None:
    """Returns the error to show if the current folder has been deleted, where engines look for relative paths."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return DataMissing(
            "the current folder has been deleted",
            required="a current folder that exists",
            where="the shell that started the command",
            remedy="change to another folder with `cd`, then run again",
        )
    return None


def share_lost_error(failure: BaseException, home: Path) -> ShareLost | None:
    """Returns the error to show if a disk or share that no longer answers caused `failure`, else None.

    An unmounted share leaves a folder of the same name, so the state folder `home` is compared with the folder
    that `remember_folder` saw.
    """
    for cause in _causes(failure):
        if not isinstance(cause, OSError):
            continue
        if cause.errno in _LOST and not isinstance(cause, ConnectionError):
            return _share_lost(cause.strerror or str(cause), cause.filename or home)
        if _is_replaced(home):
            return _share_lost("the state folder is gone, and was there when the run began", home)
    return None


def _share_lost(problem: str, path: object) -> ShareLost:
    return ShareLost(
        problem,
        required="files that stay where they are while a run reads and writes them",
        where=str(path),
        remedy="bring the disk or the share back, then run again: finished stages are reused",
    )


def _causes(failure: BaseException) -> Iterator[BaseException]:
    """Yields the failure, then what caused it, and so on."""
    error: BaseException | None = failure
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_unwritable(error: BaseException) -> bool:
    is_known = isinstance(error, OSError) and error.errno in _UNWRITABLE
    return is_known or any(words in str(error) for words in _FULL_MESSAGES)


@functools.cache
def remember_folder(home: Path) -> tuple[int, int]:
    """Returns device and inode of the state folder, as they were at the first call."""
    status = home.stat()
    return status.st_dev, status.st_ino


def _is_replaced(home: Path) -> bool:
    try:
        status = home.stat()
        return (status.st_dev, status.st_ino) != remember_folder(home)
    except OSError:
        return True


def _free_bytes(folder: Path) -> int:
    return next(shutil.disk_usage(path).free for path in (folder, *folder.parents) if path.is_dir())


def _describe_free_space(folder: Path) -> str:
    return f"{_free_bytes(folder) / 1e6:,.0f} MB free"
