"""An endpoint that follows a pointer: a version that it names is loaded and tried beside the one that answers.

Only then is it switched to, between two requests. A version that cannot be loaded, or answers otherwise than was
measured, is refused, and the one before goes on.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import BloomeryError, OutputCorrupt
from bloomery.data_contracts.serving.champion_pointer import Following, Pointer, note_following, read_pointer
from bloomery.data_contracts.serving.signatures import MANIFEST
from bloomery.deployments.endpoint.inference.model_version import Version

_SECONDS_BETWEEN_LOOKS = 0.2
_log = logging.getLogger("bloomery.endpoint")


def load(pointer: Pointer) -> Version:
    """The version that is pointed to.

    Raises:
        OutputCorrupt: it is not the one that the pointer means, a file was changed, or it answers otherwise.
    """
    artifacts = Path(pointer.artifacts)
    manifest = artifacts / MANIFEST
    found = digest_of_file(manifest) if manifest.is_file() else "no file"
    if found != pointer.manifest_sha256:
        raise OutputCorrupt(
            f"the manifest of {pointer.bento} is not the one that was promoted: {found}",
            required=f"sha256 {pointer.manifest_sha256}",
            where=str(manifest),
            remedy="roll back, or package the version again and promote it",
        )
    return Version(artifacts)


class Follower:
    """Looks at the pointer several times a second, in a thread of its own."""

    def __init__(
        self, path: Path, serving: Version, use: Callable[[Version], None], refuse: Callable[[], None]
    ) -> None:
        """`use` is called with each further version that may answer, and `refuse` when one may not."""
        self._path, self._use, self._refuse = path, use, refuse
        self._bento = serving.tag
        self._seen: tuple[int, int] | None = None  # so that a change since `serving` was loaded is seen, too
        self._ended = threading.Event()
        self._note: Path | None = None
        self._tell()

    def start(self) -> None:
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def end(self) -> None:
        self._ended.set()
        if self._note is not None:
            self._note.unlink(missing_ok=True)

    def look(self) -> None:
        """Afterwards the version that the pointer names now answers, or was refused."""
        mark = _mark(self._path)
        if mark == self._seen or mark is None:
            return
        self._seen = mark
        refused = ""
        try:
            pointer = read_pointer(self._path)
            refused = pointer.bento
            if pointer.bento != self._bento:
                self._use(load(pointer))
                self._bento = pointer.bento
            self._tell()
            _log.info("%s answers", self._bento)
        except Exception as failure:  # whatever a version holds, it must not end the one that answers
            why = failure.found if isinstance(failure, BloomeryError) else f"{type(failure).__name__}: {failure}"
            _log.error("%s goes on: %s is refused: %s", self._bento, refused or "the pointer", why)
            self._refuse()
            self._tell(refused, why)

    def _follow(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                self.look()
            except OSError:
                _log.exception("the pointer could not be looked at; trying again")

    def _tell(self, refused: str = "", why: str = "") -> None:
        started = psutil.Process().create_time()
        following = Following(
            host=socket.gethostname(), pid=os.getpid(), started=started, bento=self._bento, refused=refused, why=why
        )
        try:
            self._note = note_following(self._path.parent, following)
        except OSError:  # a full disk or a folder that is read only: answering goes on
            _log.exception("what this endpoint does could not be noted")


def _mark(path: Path) -> tuple[int, int] | None:
    """Another one whenever the file was replaced; None while there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
