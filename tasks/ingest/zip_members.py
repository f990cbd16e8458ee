"""A file in a zip as a stream of bytes, whose damage is reported as that of any file is."""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.ingest.option_names import option_names

# What zipfile raises for a damaged zip. RuntimeError is for a password, and its subclass NotImplementedError for an
# unknown compression.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, pa.ArrowInvalid, RuntimeError)


class ZipMember(io.RawIOBase):
    """A file in a zip.

    Raises:
        DataMissing: the zip is damaged, which is noticed when the file is opened or read.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str, path: str) -> None:
        self._path = path
        with self._reporting_damage():
            self._file = archive.open(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._reporting_damage():
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._reporting_damage():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    @contextlib.contextmanager
    def _reporting_damage(self) -> Iterator[None]:
        try:
            yield
        except ZIP_ERRORS as failure:
            raise zip_error(self._path, str(failure)) from failure


def zip_error(path: str, problem: str) -> DataMissing:
    return DataMissing(
        f"{path} cannot be read: {problem}",
        required="a complete zip without a password, with files of one format",
        where=path,
        remedy=f"copy it again, unpack it, or set {option_names('files', 'format')}",
    )
