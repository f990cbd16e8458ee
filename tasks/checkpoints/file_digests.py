"""The sha256 of a checkpoint's files, which are read once: gigabytes take longer than everything else in a check."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.tasks.infrastructure.settings import settings

_CACHE = "checkpoint-digests.json"  # in the state folder: path -> size, time of the last change, sha256
_RECENT_NS = 2_000_000_000  # a file that has just been written may change again within the resolution of its time


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the sha256 of each file. A file with the size and time of an earlier call is not read again."""
    cache_path = settings().home / _CACHE
    known = _read_cache(cache_path)
    digests: dict[str, str] = {}
    added: dict[str, Any] = {}
    for name in names:
        path = (folder / name).resolve()
        state = path.stat()
        stamp = [state.st_size, state.st_mtime_ns]
        entry = known.get(str(path))
        if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
            digests[name] = str(entry[2])
            continue
        digests[name] = digest_of_file(path)
        if time.time_ns() - state.st_mtime_ns > _RECENT_NS:
            added[str(path)] = [*stamp, digests[name]]
    if added and cache_path.parent.is_dir():
        with contextlib.suppress(OSError):  # the digests are correct without it
            write_text(cache_path, json.dumps({**known, **added}, indent=1))
    return digests


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def require_unchanged(checkpoint: Checkpoint) -> None:
    """Raises OutputCorrupt if a file differs from its digest of the time when the recipe was read."""
    for name, digest in checkpoint.files.items():
        path = checkpoint.path(name)
        if not path.is_file() or digest_of_file(path) != digest:
            raise OutputCorrupt(
                f"{name} of the checkpoint {checkpoint.reference} has changed since the recipe was read",
                required=f"the file with sha256 {digest}",
                where=str(path),
                remedy="run again",
            )
