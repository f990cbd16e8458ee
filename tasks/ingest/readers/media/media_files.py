"""What images and recordings share: a row per file, files in folders or in a zip, and the columns in their paths."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.data_contracts.recipe_sections.source_paths import SUFFIXES, suffix_without_compression
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import folder_label, match_path_pattern
from bloomery.tasks.ingest.readers.base import unreadable_error

# A zip with a password raises RuntimeError.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, pa.ArrowInvalid, NotImplementedError, RuntimeError)


class MediaFile(NamedTuple):
    """One file in memory: its path inside the source, and its bytes."""

    path: str
    content: bytes


def read_media(data: DataSource, origin: SourceFile) -> Iterator[MediaFile]:
    """Yields every file of the source, sorted by path inside each folder or zip. In both, the suffix decides.

    Raises:
        DataMissing: there is no file, or a zip is damaged.
    """
    for location in locations.find_files(data, origin.source):
        if suffix_without_compression(location.path) != ".zip":
            if locations.is_selected(origin, location.relative):
                with location.open_file() as file:
                    yield MediaFile(location.relative, file.read())
            continue
        try:
            with location.open_file() as file, zipfile.ZipFile(file) as archive:
                for name in sorted(archive.namelist()):
                    is_media = suffix_without_compression(name) in SUFFIXES[data.kind] and not locations.is_hidden(name)
                    if is_media and locations.is_selected(origin, name):
                        yield MediaFile(name, archive.read(name))
        except _ZIP_ERRORS as failure:
            raise unreadable_error(location.path, failure, "a complete zip without a password", "zip") from failure


def path_fields(data: DataSource) -> list[tuple[str, pa.DataType]]:
    """Returns `path`, and the groups of `path_pattern`, or `label` if there is no pattern."""
    groups = re.compile(data.path_pattern).groupindex if data.path_pattern else {"label": 0}
    return [("path", pa.string()), *((name, pa.string()) for name in groups)]


def path_values(data: DataSource, path: str) -> dict[str, str | None] | None:
    """Returns the values of `path_fields` for one file, or None if its path does not match."""
    groups = match_path_pattern(data, path)
    if groups is None:
        return None
    return {"path": path, **(groups if data.path_pattern else {"label": folder_label(path)})}
