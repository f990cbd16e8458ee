"""The files that a recipe names: here, in S3 or in HDFS; in sorted order, with their digests."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataMissing, EngineMissing
from bloomery.data_contracts.recipe_sections.data_source import (
    SUFFIXES,
    Data,
    Origin,
    compression_of,
    plain_suffix,
    scheme_of,
)

BUFFER_BYTES = 1 << 20
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


class FileLocation(NamedTuple):
    """One file; `relative` is its path inside the folder that the recipe names, and its name if it names a file."""

    filesystem: pafs.FileSystem
    path: str
    relative: str

    def open(self) -> pa.NativeFile:
        """The file's bytes as they are, to be read from any position."""
        return self.filesystem.open_input_file(self.path)

    def stream(self) -> io.BufferedReader:
        """The file's bytes from the start, decompressed if its suffix says so."""
        packed = compression_of(self.path)
        return io.BufferedReader(self.filesystem.open_input_stream(self.path, compression=packed), BUFFER_BYTES)


def find_files(data: Data, source: str) -> list[FileLocation]:
    """The files of `source`, sorted by path. In a folder those with a suffix of the format count, in all folders below.

    Names that begin with a dot or an underscore are notes of other programs and no data, as in Spark.

    Raises:
        DataMissing: there is no such file.
        EngineMissing: the file system's client is not there.
    """
    filesystem, path = _filesystem(source)
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [FileLocation(filesystem, path, PurePosixPath(path).name)]
        if info.type == pafs.FileType.Directory:
            found = _below(filesystem, path, lambda name: plain_suffix(name) in SUFFIXES[data.kind])
        else:
            root, pattern = _split(path)
            found = _below(filesystem, root, re.compile(_as_regex(pattern)).fullmatch) if pattern else []
    except OSError as failure:
        if failure.errno is not None and not isinstance(failure, PermissionError):
            raise
        raise _missing(data, source, f"{source} cannot be listed: {failure}") from failure
    if not found:
        kind = data.kind.capitalize() if data.kind == "parquet" else data.kind
        in_folder = info.type == pafs.FileType.Directory
        raise _missing(data, source, f"there is no {kind} {'in the folder' if in_folder else 'file'} {source}")
    return found


def identify_files(data: Data, origin: Origin) -> list[object]:
    """What changes when the content of a source's files does: names with sha256, or what the store says of them."""
    return [_identity(place, origin.source) for place in find_files(data, origin.source)]


def is_selected(origin: Origin, relative: str) -> bool:
    """Whether the file at this path inside its folder or zip is one of those that the origin names by `files`."""
    return origin.files is None or re.search(origin.files, relative) is not None


def match_path_pattern(data: Data, relative: str) -> dict[str, str | None] | None:
    """The columns that a file's path gives: the groups of `path_pattern`; None if the path does not fit it."""
    if data.path_pattern is None:
        return {}
    found = re.search(data.path_pattern, relative)
    return found.groupdict() if found else None


def partition_values(relative: str) -> dict[str, str | None]:
    """The columns that folders named `column=value` give."""
    pairs = [part.split("=", 1) for part in PurePosixPath(relative).parts[:-1] if "=" in part]
    return {name: None if value == _NO_VALUE else unquote(value) for name, value in pairs}


def folder_label(relative: str) -> str | None:
    """The name of the folder that the file lies in, below the one that the recipe names."""
    return PurePosixPath(relative).parent.name or None


def _filesystem(source: str) -> tuple[pafs.FileSystem, str]:
    scheme = scheme_of(source)
    if scheme is None:
        return pafs.LocalFileSystem(), str(Path(source).absolute())
    if scheme == "s3":
        return _s3(), source.removeprefix("s3://").rstrip("/")
    try:
        return pafs.FileSystem.from_uri(source)
    except OSError as failure:
        raise EngineMissing(
            f"the client of HDFS does not start: {failure}",
            required="a Hadoop client with libhdfs, and HADOOP_HOME, CLASSPATH and JAVA_HOME set for it",
            where=source,
            remedy="run where the cluster's client is installed",
        ) from failure


def _s3() -> pafs.S3FileSystem:
    """S3 with the credentials, region and endpoint of the environment, by the names that AWS gives them."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return pafs.S3FileSystem(**({"endpoint_override": endpoint} if endpoint else {}), region=region or "us-east-1")


def _below(filesystem: pafs.FileSystem, root: str, is_wanted: Callable[[str], object]) -> list[FileLocation]:
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    places = []
    for info in filesystem.get_file_info(selector):
        relative = info.path[len(root) :].lstrip("/") if root else info.path
        if info.type == pafs.FileType.File and not is_hidden(relative) and is_wanted(relative):
            places.append(FileLocation(filesystem, info.path, relative))
    return sorted(places, key=lambda place: place.relative)


def is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in PurePosixPath(relative).parts)


def _split(path: str) -> tuple[str, str]:
    """The folder in front of the first wildcard, and the pattern behind it."""
    parts = path.split("/")
    first = next((index for index, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _as_regex(pattern: str) -> str:
    """`*` and `?` stay inside a folder's name, `**/` is any number of folders."""
    spelt = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern)
    return "".join(
        spelt.get(piece) or (piece.replace("[!", "[^", 1) if re.fullmatch(r"\[.+\]", piece) else re.escape(piece))
        for piece in pieces
    )


def _identity(place: FileLocation, source: str) -> Sequence[object]:
    scheme = scheme_of(source)
    if scheme is None:
        return [place.relative, digest_of_file(Path(place.path))]
    info = place.filesystem.get_file_info(place.path)
    if scheme == "s3":
        with place.open() as file:
            told = {str(key).lower(): str(value) for key, value in (file.metadata() or {}).items()}
        return [place.relative, place.path, info.size, told.get("etag")]
    return [place.relative, place.path, info.size, info.mtime_ns]


def _missing(data: Data, source: str, found: str) -> DataMissing:
    suffixes = ", ".join(SUFFIXES[data.kind])
    return DataMissing(
        found,
        required=f"a file of format {data.kind}, a folder with files that end in {suffixes}, or a pattern",
        where="the recipe's `data` (a relative path starts at the recipe's own folder)",
        remedy="mend the path or the `format` in the recipe, or put the data there" + obtain_hint(data),
    )


def obtain_hint(data: Data) -> str:
    """Where the data comes from, to be told behind a remedy."""
    return f": {data.obtain}" if data.obtain else ""
