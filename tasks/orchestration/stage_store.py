"""Stage outputs on disk: complete or absent, and looked up by a key that their inputs and code determine.

The output of a stage lies in `stages/NAME/KEY/`, where KEY is a digest of the stage's name, its code version, the
digests of its input records and its part of the recipe. It is written to `stages/.tmp/` and moved into place when it is
complete, so a killed run leaves no incomplete output.

One process at a time works on a key: a second one waits, then finds the output of the first. The lock belongs to the
operating system, which releases it when its process ends.
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


class StoredOutput(Document):
    """The content of `record.json`: the record as a document, and the size and digest of every file in its folder."""

    stage: str
    key: str
    record: dict[str, Any]
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Output:
    """The folder that a stage writes into, and the URI that its files have once the output is complete."""

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
    """The key of the output for `arguments`: a digest of the stage's name, its code version and the arguments.

    A document counts by its `identity`, a record by its digest. A `NotPartOfKey` does not count.
    """
    identities = [_identity(argument) for argument in arguments if not isinstance(argument, NotPartOfKey)]
    return digest_of_document({"stage": stage, "code": code, "arguments": identities})[:32]


def _identity(argument: Any) -> Any:
    if isinstance(argument, Document):
        return argument.identity()
    return argument.model_dump(mode="json", by_alias=True) if isinstance(argument, BaseModel) else argument


def find(
    stage: str, key: str, kind: type[RecordT], is_complete: Callable[[RecordT], bool] = lambda record: True
) -> RecordT | None:
    """The record of an earlier run; None if there is none, or a file is missing or differs from its digest.

    `is_complete` checks the parts of the output that lie outside the folder `stages`, such as a registered version.
    """
    folder = settings().home / "stages" / stage / key
    try:
        stored = StoredOutput.model_validate_json((folder / _RECORD).read_text(encoding="utf-8"))
        record = kind.model_validate(stored.record)
        for name, entry in stored.files.items():
            path = folder / name
            if path.stat().st_size != entry.size_bytes or digest_of_file(path) != entry.sha256:
                return None
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return record if is_complete(record) else None


def find_or_compute(
    stage: str,
    key: str,
    kind: type[RecordT],
    compute: Callable[[Output], RecordT],
    is_complete: Callable[[RecordT], bool] = lambda record: True,
) -> Outcome[RecordT]:
    """The record of `stage` for `key`: that of a complete earlier output, else computed and stored.

    Raises:
        StateUnwritable: the disk is full or the state folder cannot be written. No incomplete output is left.
    """
    try:
        with _lock(stage, key):
            record = find(stage, key, kind, is_complete)
            if record is not None:
                return Outcome(record, was_found=True)
            return Outcome(_compute(stage, key, compute), was_found=False)
    except BloomeryError:
        raise
    except Exception as failure:  # on a full disk, libraries not written in Python do not raise OSError
        unwritable = disk_full_error(failure, f"stage {stage}", settings().home)
        if unwritable is None:
            raise
        raise unwritable from failure


def _compute(stage: str, key: str, compute: Callable[[Output], RecordT]) -> RecordT:
    home = settings().home
    temporary = home / "stages" / ".tmp" / f"{stage}-{key}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        record = compute(Output(stage, key, temporary))
        files = {
            str(path.relative_to(temporary)): FileEntry(size_bytes=path.stat().st_size, sha256=digest_of_file(path))
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        stored = StoredOutput(stage=stage, key=key, record=record.model_dump(mode="json", by_alias=True), files=files)
        with (temporary / _RECORD).open("w", encoding="utf-8") as stream:
            stream.write(stored.model_dump_json(indent=1))
            stream.flush()
            os.fsync(stream.fileno())
        final = home / "stages" / stage / key
        shutil.rmtree(final, ignore_errors=True)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def remove_leftovers() -> None:
    """Removes incomplete outputs of killed runs from `stages/.tmp`; those of living processes stay."""
    for temporary in (settings().home / "stages" / ".tmp").glob("*-*"):
        stage, key = temporary.name.rsplit("-", 1)
        try:
            with _lock(stage, key, timeout_s=0):
                shutil.rmtree(temporary, ignore_errors=True)
        except Timeout:
            continue


def try_lock(stage: str, key: str) -> FileLock:
    """The lock of a key, for removing its output. Entering it raises Timeout if a process works on the key."""
    return _lock(stage, key, timeout_s=0)


def _lock(stage: str, key: str, timeout_s: float = -1) -> FileLock:
    folder = settings().home / "stages" / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{stage}-{key}.lock", timeout=timeout_s)
