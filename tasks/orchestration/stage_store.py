"""Stage outputs on disk: whole or absent, found again by what made them.

The output of a stage lies in `stages/NAME/KEY/`, where KEY is a digest over the stage's name, its code version, the
digests of the records it was given and its slice of the recipe. It is written beside, in `stages/.tmp/`, and moved into
place as the last act, so that a killed run leaves nothing half-written where anyone looks.

One process at a time works on a key: a second one waits, then finds what the first has made. The lock is the operating
system's, and goes with the process that holds it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.documents.documents import Document, NotPartOfKey
from bloomery.data_contracts.errors import BloomeryError
from bloomery.data_contracts.records.records import Record
from bloomery.tasks.infrastructure.disk_errors import disk_full_error
from bloomery.tasks.infrastructure.settings import settings

RecordT = TypeVar("RecordT", bound=Record)

_RECORD = "record.json"


class FileEntry(Document):
    size_bytes: int
    sha256: str


class Shelf(Document):
    """What `record.json` holds: the record as a document, and the digest of every file beside it."""

    stage: str
    key: str
    record: dict[str, Any]
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Output:
    """The folder that a stage writes into, and the address that it will have once it is whole."""

    stage: str
    key: str
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / name

    def uri(self, name: str) -> str:
        return f"stages/{self.stage}/{self.key}/{name}"


@dataclass(frozen=True)
class Outcome(Generic[RecordT]):
    record: RecordT
    was_found: bool


def key_of(stage: str, code: str, arguments: Sequence[Any]) -> str:
    """The key of what `stage` makes of `arguments`: a digest of the stage's name, its code version and the arguments.

    A document counts by its `identity`, such as a record by its digest. A `NotPartOfKey` does not count.
    """
    counting = [_identity(argument) for argument in arguments if not isinstance(argument, NotPartOfKey)]
    return digest_of_document({"stage": stage, "code": code, "arguments": counting})[:32]


def _identity(argument: Any) -> Any:
    if isinstance(argument, Document):
        return argument.identity()
    return argument.model_dump(mode="json", by_alias=True) if isinstance(argument, BaseModel) else argument


def find(
    stage: str, key: str, kind: type[RecordT], is_whole: Callable[[RecordT], bool] = lambda record: True
) -> RecordT | None:
    """The record of an earlier run, or None if there is none or any file of it is not what was recorded.

    `is_whole` asks about what lies outside the state folder's `stages`, such as a registry.
    """
    folder = settings().home / "stages" / stage / key
    try:
        shelf = Shelf.model_validate_json((folder / _RECORD).read_text(encoding="utf-8"))
        record = kind.model_validate(shelf.record)
        for name, entry in shelf.files.items():
            path = folder / name
            if path.stat().st_size != entry.size_bytes or digest_of_file(path) != entry.sha256:
                return None
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return record if is_whole(record) else None


def find_or_compute(
    stage: str,
    key: str,
    kind: type[RecordT],
    compute: Callable[[Output], RecordT],
    is_whole: Callable[[RecordT], bool] = lambda record: True,
) -> Outcome[RecordT]:
    """The record of `stage` for `key`: found if an earlier run left it whole, else computed and kept.

    Raises:
        StateUnwritable: the disk is full or the state folder cannot be written. Nothing half-written is left.
    """
    try:
        with _lock(stage, key):
            record = find(stage, key, kind, is_whole)
            if record is not None:
                return Outcome(record, was_found=True)
            return Outcome(_compute(stage, key, compute), was_found=False)
    except BloomeryError:
        raise
    except Exception as failure:  # what is not written in Python raises no OSError where the disk is full
        unwritable = disk_full_error(failure, f"stage {stage}", settings().home)
        if unwritable is None:
            raise
        raise unwritable from failure


def _compute(stage: str, key: str, compute: Callable[[Output], RecordT]) -> RecordT:
    home = settings().home
    beside = home / "stages" / ".tmp" / f"{stage}-{key}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        record = compute(Output(stage, key, beside))
        files = {
            str(path.relative_to(beside)): FileEntry(size_bytes=path.stat().st_size, sha256=digest_of_file(path))
            for path in sorted(beside.rglob("*"))
            if path.is_file()
        }
        shelf = Shelf(stage=stage, key=key, record=record.model_dump(mode="json", by_alias=True), files=files)
        with (beside / _RECORD).open("w", encoding="utf-8") as stream:
            stream.write(shelf.model_dump_json(indent=1))
            stream.flush()
            os.fsync(stream.fileno())
        final = home / "stages" / stage / key
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        beside.rename(final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return record


def sweep() -> None:
    """Remove what killed runs have left in `stages/.tmp`; what a living process works on stays."""
    for beside in (settings().home / "stages" / ".tmp").glob("*-*"):
        stage, key = beside.name.rsplit("-", 1)
        try:
            with _lock(stage, key, timeout_s=0):
                shutil.rmtree(beside, ignore_errors=True)
        except Timeout:
            continue


def locked(stage: str, key: str) -> FileLock:
    """The lock of a key, for who would remove its output. Entering raises Timeout where somebody works on it."""
    return _lock(stage, key, timeout_s=0)


def _lock(stage: str, key: str, timeout_s: float = -1) -> FileLock:
    folder = settings().home / "stages" / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{stage}-{key}.lock", timeout=timeout_s)
