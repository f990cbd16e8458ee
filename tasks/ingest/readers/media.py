"""What images and recordings share: a row per file, files in folders or in a zip, and the columns of their paths."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import SUFFIXES, Data, Origin, plain_suffix
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import folder_label, match_path_pattern
from bloomery.tasks.ingest.readers.base import unreadable_error

# RuntimeError is what a zip with a password raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, pa.ArrowInvalid, NotImplementedError, RuntimeError)


class MediaFile(NamedTuple):
    """One file in memory: its path inside the source, and its bytes."""

    path: str
    content: bytes


def read_media(data: Data, origin: Origin) -> Iterator[MediaFile]:
    """Every file of the source, sorted by path inside each folder or zip. In a zip, as in a folder, the suffix decides.

    Raises:
        DataMissing: there is no file, or a zip is damaged.
    """
    for place in locations.find_files(data, origin.source):
        if plain_suffix(place.path) != ".zip":
            if locations.is_selected(origin, place.relative):
                with place.open() as file:
                    yield MediaFile(place.relative, file.read())
            continue
        try:
            with place.open() as file, zipfile.ZipFile(file) as archive:
                for name in sorted(archive.namelist()):
                    is_wanted = plain_suffix(name) in SUFFIXES[data.kind] and not locations.is_hidden(name)
                    if is_wanted and locations.is_selected(origin, name):
                        yield MediaFile(name, archive.read(name))
        except _DAMAGED as failure:
            raise unreadable_error(place.path, failure, "a whole zip without a password", "zip") from failure


def path_fields(data: Data) -> list[tuple[str, pa.DataType]]:
    """`path`, and the groups of `path_pattern`, or `label` if there is none."""
    groups = re.compile(data.path_pattern).groupindex if data.path_pattern else {"label": 0}
    return [("path", pa.string()), *((name, pa.string()) for name in groups)]


def path_values(data: Data, path: str) -> dict[str, str | None] | None:
    """The values of `given_fields` for one file, or None if its path does not fit."""
    told = match_path_pattern(data, path)
    if told is None:
        return None
    return {"path": path, **(told if data.path_pattern else {"label": folder_label(path)})}
