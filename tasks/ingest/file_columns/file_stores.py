"""Files by name in a folder, in a zip, in S3 or HDFS, and at a web server: their bytes and what identifies them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow.fs as pafs

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.source_paths import REMOTE
from bloomery.models.media.config import MediaUnreadable
from bloomery.tasks.ingest.file_columns.file_names import WEB, join_url
from bloomery.tasks.ingest.locations import open_filesystem
from bloomery.tasks.ingest.zip_members import ZIP_ERRORS, zip_error

if TYPE_CHECKING:
    import httpx

MAX_FILE_BYTES = 512 << 20
_ATTEMPTS = 3  # at a web server that does not answer, or answers with an error of its own
_PAUSE_S = 0.5
_TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 20
_UNKNOWN_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class FileStore(Protocol):
    """Files below one folder. Both methods may be called from several threads, and raise MediaUnreadable."""

    def identify(self, path: str, *, by_content: bool = True) -> list[object]:
        """Returns what changes when the file's content does; for files here that is its time, if not `by_content`."""

    def read(self, path: str) -> bytes:
        """Returns the file's bytes."""


class LocalFolder:
    """A folder on this machine. A link out of it is refused: names come from a table."""

    def __init__(self, folder: str) -> None:
        self._root = Path(os.path.realpath(folder))

    def identify(self, path: str, *, by_content: bool = True) -> list[object]:
        file = self._locate(path)
        info = file.stat()
        return [digest_of_file(file)] if by_content else [info.st_size, info.st_mtime_ns]

    def read(self, path: str) -> bytes:
        file = self._locate(path)
        _require_size(file.stat().st_size)
        return file.read_bytes()

    def _locate(self, path: str) -> Path:
        file = Path(os.path.realpath(self._root / path))
        try:
            if not file.is_relative_to(self._root):
                raise MediaUnreadable("a link out of the folder")
            if not file.exists():
                raise MediaUnreadable("no such file")
            if not file.is_file():
                raise MediaUnreadable("a folder, not a file")
            if not os.access(file, os.R_OK):
                raise MediaUnreadable("permission denied")
        except OSError as failure:  # such as a name that is too long
            raise MediaUnreadable(failure.strerror or str(failure)) from failure
        return file


class ZipFolder:
    """The files in a zip, or in a folder inside it."""

    def __init__(self, archive_path: str, folder: str) -> None:
        self._path, self._folder, self._lock = archive_path, folder, threading.Lock()
        try:
            self._archive = zipfile.ZipFile(archive_path)
        except ZIP_ERRORS as failure:
            raise zip_error(archive_path, str(failure)) from failure

    def identify(self, path: str, *, by_content: bool = True) -> list[object]:
        info = self._info(path)
        return [info.file_size, info.CRC]

    def read(self, path: str) -> bytes:
        info = self._info(path)
        _require_size(info.file_size)
        try:
            with self._lock:
                return self._archive.read(info)
        except ZIP_ERRORS as failure:
            raise MediaUnreadable(f"damaged in the zip: {failure}") from failure

    def _info(self, path: str) -> zipfile.ZipInfo:
        try:
            return self._archive.getinfo(self._folder + path)
        except KeyError:
            raise MediaUnreadable("no such file in the zip") from None


class ArrowFolder:
    """A folder in S3 or HDFS, which know a version of each file."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._filesystem, root = open_filesystem(folder)
        self._root = root.rstrip("/")

    def identify(self, path: str, *, by_content: bool = True) -> list[object]:
        location = f"{self._root}/{path}"
        with self._reporting_failures(path):
            info = self._filesystem.get_file_info(location)
            if info.type != pafs.FileType.File:
                raise MediaUnreadable("no such file")
            if not self._folder.startswith("s3://"):
                return [info.size, info.mtime_ns]
            with self._filesystem.open_input_file(location) as file:
                metadata = {str(key).lower(): str(value) for key, value in (file.metadata() or {}).items()}
            return [info.size, metadata.get("etag")]

    def read(self, path: str) -> bytes:
        with self._reporting_failures(path), self._filesystem.open_input_file(f"{self._root}/{path}") as file:
            _require_size(file.size())
            return bytes(file.read())

    @contextlib.contextmanager
    def _reporting_failures(self, path: str) -> Iterator[None]:
        """Raises DataMissing where the store fails: another run would read the file."""
        try:
            yield
        except FileNotFoundError:
            raise MediaUnreadable("no such file") from None
        except OSError as failure:
            raise DataMissing(
                f"{self._folder}/{path} cannot be read: {failure}",
                required="a store that answers, with permission to read",
                where="the recipe's data.media",
                remedy="check the credentials and the address of the store, or run again when it is up",
            ) from failure


class WebFolder:
    """Files at a web server, below a folder's URL, or by their own URLs if the folder is empty."""

    def __init__(self, folder: str) -> None:
        import httpx

        self._folder = folder
        self._client = httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S)

    def identify(self, path: str, *, by_content: bool = True) -> list[object]:
        """Returns size and version as the server states them; where it states none, the sha256 of the content."""
        headers = self._request("HEAD", path)
        if headers is not None:
            version = [headers.get(name) for name in ("etag", "last-modified")]
            if any(version):
                return [headers.get("content-length"), *version]
        import hashlib

        return [hashlib.sha256(self.read(path)).hexdigest()]

    def read(self, path: str) -> bytes:
        content = bytearray()
        self._request("GET", path, content)
        return bytes(content)

    def _request(self, method: str, path: str, content: bytearray | None = None) -> httpx.Headers | None:
        """Returns the headers, and appends the body to `content`; None if a HEAD is refused, so that a GET decides.

        A HEAD may be refused for files that exist: presigned URLs are valid for one method.

        Raises:
            MediaUnreadable: there is no such file, it is too large, or no server has the name in its own URL.
            DataMissing: the server does not answer, or with an error of its own.
        """
        import httpx

        url = join_url(self._folder, path) if self._folder else path
        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S * attempt)
            try:
                with self._client.stream(method, url) as response:
                    status = response.status_code
                    is_busy = status == 429 or status >= 500
                    if method == "HEAD" and status >= 400 and (not is_busy or status == 501):
                        return None
                    if is_busy:
                        problem = f"it answers with status {status}"
                        continue
                    if status >= 400:
                        raise MediaUnreadable(f"the server answers with status {status}")
                    _receive(response, content)
                    return response.headers
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as failure:
                raise MediaUnreadable(f"not a valid URL: {failure}") from failure
            except httpx.HTTPError as failure:
                if not self._folder and _is_unknown_name(failure):
                    raise MediaUnreadable("no server has the name in its URL") from failure
                problem = str(failure) or type(failure).__name__
        raise DataMissing(
            f"{url} cannot be read: {problem}",
            required="a server that answers, also with status 404 for a file that does not exist",
            where="the recipe's data.media",
            remedy="run again when the server is up, or copy the files and set `folder` to the copy",
        )


class UrlFiles:
    """Files by their own URLs: at web servers, in S3 or in HDFS."""

    def __init__(self) -> None:
        self._web = WebFolder("")
        self._remote: dict[str, ArrowFolder] = {}

    def identify(self, path: str, *, by_content: bool = True) -> list[object]:
        store, name = self._split(path)
        return store.identify(name)

    def read(self, path: str) -> bytes:
        store, name = self._split(path)
        return store.read(name)

    def _split(self, url: str) -> tuple[FileStore, str]:
        if not url.startswith(REMOTE):
            return self._web, url
        folder, _, name = url.rpartition("/")
        if folder not in self._remote:
            self._remote[folder] = ArrowFolder(folder)
        return self._remote[folder], name


def open_folder(folder: str) -> FileStore:
    """Returns the files of a folder, by what its path begins with.

    Raises:
        DataMissing: there is no such folder, or its zip is damaged.
        EngineMissing: the client of a file system is not installed.
    """
    if folder.startswith(WEB):
        return WebFolder(folder)
    if folder.startswith(REMOTE):
        return ArrowFolder(folder)
    path = Path(folder)
    if path.is_dir():
        return LocalFolder(folder)
    archive = next((item for item in (path, *path.parents) if item.suffix.lower() == ".zip" and item.is_file()), None)
    if archive is None:
        raise DataMissing(
            f"there is no folder {folder}",
            required="the folder of the files that a column names",
            where="the recipe's data.media",
            remedy="correct `folder` (a relative path starts at the recipe's folder), or put the files there",
        )
    inner = "" if archive == path else f"{path.relative_to(archive).as_posix()}/"
    return ZipFolder(str(archive), inner)


def _is_unknown_name(failure: BaseException) -> bool:
    """Whether a name server has answered that there is no such name; without its answer, the name may exist."""
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, socket.gaierror):
        cause = cause.__cause__ or cause.__context__
    return cause is not None and cause.errno in _UNKNOWN_NAME


def _require_size(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise MediaUnreadable(f"{num_bytes:,} bytes, where at most {MAX_FILE_BYTES:,} are read")


def _receive(response: httpx.Response, content: bytearray | None) -> None:
    if content is None:
        return
    content.clear()
    for block in response.iter_bytes(_BLOCK_BYTES):
        _require_size(len(content) + len(block))
        content += block
