"""Follows the champion pointer: loads and tests the version that it names, then switches to it between two requests.

Meanwhile the current version serves. A version that cannot be loaded or fails its self-test is rejected, and the
current version stays.
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
from bloomery.data_contracts.serving.champion_pointer import (
    ChampionPointer,
    FollowerStatus,
    read_pointer,
    write_follower_status,
)
from bloomery.data_contracts.serving.signatures import MANIFEST_FILE
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion

_POLL_INTERVAL_S = 0.2
_log = logging.getLogger("bloomery.endpoint")


def load_version(pointer: ChampionPointer) -> LoadedVersion:
    """Loads the version that the pointer names.

    Raises:
        OutputCorrupt: its manifest is not the promoted one, a file has changed, or the self-test fails.
    """
    artifacts = Path(pointer.artifacts)
    manifest = artifacts / MANIFEST_FILE
    digest = digest_of_file(manifest) if manifest.is_file() else "no file"
    if digest != pointer.manifest_sha256:
        raise OutputCorrupt(
            f"the manifest of {pointer.bento} is not the promoted one: {digest}",
            required=f"sha256 {pointer.manifest_sha256}",
            where=str(manifest),
            remedy="roll back, or package the version again and promote it",
        )
    return LoadedVersion(artifacts)


class PointerFollower:
    """Polls the pointer several times per second in a thread."""

    def __init__(
        self,
        path: Path,
        current: LoadedVersion,
        on_version: Callable[[LoadedVersion], None],
        on_rejected: Callable[[], None],
    ) -> None:
        """`on_version` is called with each new version, `on_rejected` for each version that cannot serve."""
        self._path, self._on_version, self._on_rejected = path, on_version, on_rejected
        self._bento = current.tag
        self._file_state: tuple[int, int] | None = None  # unknown, to notice a change since `current` was loaded
        self._stopped = threading.Event()
        self._status_file: Path | None = None
        self._write_status()

    def start(self) -> None:
        threading.Thread(target=self._follow, name="pointer-follower", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        if self._status_file is not None:
            self._status_file.unlink(missing_ok=True)

    def poll(self) -> None:
        """Switches to the version that the pointer names now, or rejects it."""
        file_state = _stat(self._path)
        if file_state == self._file_state or file_state is None:
            return
        self._file_state = file_state
        candidate = ""
        try:
            pointer = read_pointer(self._path)
            candidate = pointer.bento
            if pointer.bento != self._bento:
                self._on_version(load_version(pointer))
                self._bento = pointer.bento
            self._write_status()
            _log.info("serving %s", self._bento)
        except Exception as failure:  # no error of a new version may end the current one
            reason = failure.found if isinstance(failure, BloomeryError) else f"{type(failure).__name__}: {failure}"
            _log.error("%s stays; %s is rejected: %s", self._bento, candidate or "the pointer", reason)
            self._on_rejected()
            self._write_status(candidate, reason)

    def _follow(self) -> None:
        while not self._stopped.wait(_POLL_INTERVAL_S):
            try:
                self.poll()
            except OSError:
                _log.exception("the pointer cannot be read; trying again")

    def _write_status(self, rejected: str = "", reason: str = "") -> None:
        started = psutil.Process().create_time()
        status = FollowerStatus(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=started,
            bento=self._bento,
            refused_bento=rejected,
            refusal_reason=reason,
        )
        try:
            self._status_file = write_follower_status(self._path.parent, status)
        except OSError:  # a full disk or a read-only folder must not end the endpoint
            _log.exception("the status of this endpoint cannot be written")


def _stat(path: Path) -> tuple[int, int] | None:
    """Returns a state that changes whenever the file is replaced; None if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
