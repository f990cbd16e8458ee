"""Atomic writes: a reader sees the old content of a file or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it replaces `path` when the block ends, and is removed if the block fails."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replaces the file's content, which lies on the disk before the file has its name. Creates missing folders.

    Args:
        path: the file; its folder is where the temporary file is created.
        content: the new content.
        mode: permission bits such as 0o600; without it the process's umask decides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        # Created readable for its owner alone, so that a secret is never readable for others, not even for a moment.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)


def write_text(path: Path, text: str, *, mode: int | None = None) -> None:
    """Replaces the file's content by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode(), mode=mode)
