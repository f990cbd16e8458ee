"""Which version of a name answers: one small file, which endpoints follow and promotions replace.

The folder of a name has `pointer.json`, and for each process that answers a note of what it does.
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
    """The version that shall answer: its bento, where that lies, and the digest of its manifest."""

    name: str
    version: int
    bento: str
    artifacts: str
    manifest_sha256: str


class FollowerStatus(Document):
    """What a process that answers has made of the pointer. `started` tells processes apart that had one number."""

    host: str
    pid: int
    started: float
    bento: str
    refused_bento: str = ""  # the bento that it was pointed to and could not take
    refusal_reason: str = ""


def read_pointer(path: Path) -> ChampionPointer:
    """Raises OutputCorrupt where there is no such file, or it says something else."""
    try:
        return ChampionPointer.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as failure:
        raise OutputCorrupt(
            f"the pointer cannot be read: {str(failure).splitlines()[0]}",
            required="a file that names the version which answers",
            where=str(path),
            remedy="`bloomery serve NAME` and `bloomery promote NAME:VERSION` write it again",
        ) from failure


def write_pointer(path: Path, pointer: ChampionPointer) -> None:
    """Afterwards the file says so. Whoever reads meanwhile has the one or the other, whole."""
    write_text(path, pointer.model_dump_json(indent=1), mode=0o600)


def write_follower_status(folder: Path, following: FollowerStatus) -> Path:
    """Leave in the name's folder what this process does; it is removed by whoever finds that the process has ended."""
    path = folder / FOLLOWERS_FOLDER / f"{following.host}-{following.pid}.json"
    write_text(path, following.model_dump_json(), mode=0o600)
    return path


def read_follower_statuses(folder: Path) -> dict[Path, FollowerStatus]:
    """What the processes have noted, living or not."""
    found = {}
    for path in sorted((folder / FOLLOWERS_FOLDER).glob("*.json")):
        with contextlib.suppress(OSError, UnicodeDecodeError, ValidationError):
            found[path] = FollowerStatus.model_validate_json(path.read_text(encoding="utf-8"))
    return found
