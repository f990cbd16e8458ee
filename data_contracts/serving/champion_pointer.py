"""The champion pointer: a small file that names the served version. Promotions replace it, endpoints follow it.

The folder of a model's name has `pointer.json`, and a status file for each process that follows it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import ValidationError

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.errors import OutputCorrupt

POINTER_FILE, FOLLOWERS_FOLDER = "pointer.json", "followers"


class ChampionPointer(Document):
    """The version to serve: its bento, the folder of its artifacts, and the digest of its manifest."""

    name: str
    version: int
    bento: str
    artifacts: str
    manifest_sha256: str


class FollowerStatus(Document):
    """The bento that a following process serves. `started` distinguishes processes that had the same `pid`."""

    host: str
    pid: int
    started: float
    bento: str
    refused_bento: str = ""  # the bento that it could not load
    refusal_reason: str = ""


def read_pointer(path: Path) -> ChampionPointer:
    """Raises OutputCorrupt if the file does not exist or is not a pointer."""
    try:
        return ChampionPointer.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as failure:
        raise OutputCorrupt(
            f"the pointer cannot be read: {str(failure).splitlines()[0]}",
            required="a file that names the version to serve",
            where=str(path),
            remedy="`bloomery serve NAME` and `bloomery promote NAME:VERSION` write it again",
        ) from failure


def write_pointer(path: Path, pointer: ChampionPointer) -> None:
    """Replaces the pointer atomically."""
    write_text(path, pointer.model_dump_json(indent=1), mode=0o600)


def write_follower_status(folder: Path, status: FollowerStatus) -> Path:
    """Writes the status of this process into the model's folder. Readers remove it once the process has ended."""
    path = folder / FOLLOWERS_FOLDER / f"{status.host}-{status.pid}.json"
    write_text(path, status.model_dump_json(), mode=0o600)
    return path


def read_follower_statuses(folder: Path) -> dict[Path, FollowerStatus]:
    """The statuses by file, also of processes that have ended."""
    statuses = {}
    for path in sorted((folder / FOLLOWERS_FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, UnicodeDecodeError, ValidationError):
            statuses[path] = FollowerStatus.model_validate_json(path.read_text(encoding="utf-8"))
    return statuses
