"""Finds the files of a source, on this machine, in S3 or in HDFS, in sorted order and with their digests."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataMissing, EngineMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.data_contracts.recipe_sections.source_paths import (
    SUFFIXES,
    compression_codec,
    source_scheme,
    suffix_without_compression,
    suffixes_of,
)
from bloomery.tasks.ingest.option_names import option_names
from bloomery.tasks.ingest.zip_members import ZIP_ERRORS, ZipMember, zip_error

BUFFER_BYTES = 1 << 20
_ENCRYPTED = 1  # the bit of a zip's flags
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class FileLocation(NamedTuple):
    """One file. `relative` is its path inside the recipe's folder, or its name where the recipe names the file.

    In the zip at `path`, that is `archive`, `relative` is the name of the file.
    """

    filesystem: pafs.FileSystem
    path: str
    relative: str
    archive: zipfile.ZipFile | None = None

    def open_file(self) -> pa.NativeFile:
        """Opens the stored bytes for reading at any position."""
        if self.archive is not None:
            return pa.PythonFile(self._open_member(self.archive), mode="r")
        return self.filesystem.open_input_file(self.path)

    def open_stream(self) -> io.BufferedReader:
        """Opens the file for reading from its start, decompressed if its suffix names a compression."""
        compression = compression_codec(self.relative)
        if self.archive is not None:
            member = self._open_member(self.archive)
            if compression is None:
                return member
            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(member, mode="r"), compression))
        return io.BufferedReader(self.filesystem.open_input_stream(self.path, compression=compression), BUFFER_BYTES)

    def _open_member(self, archive: zipfile.ZipFile) -> io.BufferedReader:
        return io.BufferedReader(ZipMember(archive, self.relative, self.path), BUFFER_BYTES)


def find_row_files(data: DataSource, origin: SourceFile) -> list[FileLocation]:
    """Returns the files of `origin` that its pattern `files` selects; of a zip, the files in it.

    Of these, only those with a suffix of the format count, unless `files` selects them or there is one file.

    Raises:
        DataMissing: there is no such file, or a zip is damaged.
    """
    locations: list[FileLocation] = []
    for location in find_files(data, origin.source):
        is_zip = PurePosixPath(location.path).suffix.lower() == ".zip"
        locations += _list_members(location, data, origin) if is_zip else [location]
    selected = [location for location in locations if is_selected(origin, location.relative)]
    if not selected:
        raise DataMissing(
            f"no file has {origin.files!r} in its path",
            required="a path that `files` matches",
            where=origin.source,
            remedy=f"correct {option_names('files')}; the files are {', '.join(item.relative for item in locations)}",
        )
    return selected


def _list_members(location: FileLocation, data: DataSource, origin: SourceFile) -> list[FileLocation]:
    try:
        archive = zipfile.ZipFile(location.open_file())
        members = [info for info in archive.infolist() if not info.is_dir() and not is_hidden(info.filename)]
    except ZIP_ERRORS as failure:
        raise zip_error(location.path, str(failure)) from failure
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise zip_error(location.path, "it has a password")
    names = sorted(member.filename for member in members)
    suffixes = suffixes_of(data.kind, data.unit)
    of_format = [name for name in names if suffix_without_compression(name) in suffixes]
    if origin.files is None and len(names) != 1:
        if not of_format:
            raise zip_error(location.path, f"none of its files is {data.kind}: {', '.join(names) or 'it is empty'}")
        names = of_format
    return [location._replace(relative=name, archive=archive) for name in names]


def find_files(data: DataSource, source: str) -> list[FileLocation]:
    """Returns the files of `source`, sorted by path. A folder counts with all folders below, by the format's suffixes.

    Names that begin with a dot or an underscore are not data, as in Spark.

    Raises:
        DataMissing: there is no such file.
        EngineMissing: the file system's client is not installed.
    """
    filesystem, path = open_filesystem(source)
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [FileLocation(filesystem, path, PurePosixPath(path).name)]
        if info.type == pafs.FileType.Directory:
            locations = _list_files(filesystem, path, lambda name: _is_of_format(data, name))
        else:
            root, pattern = _split_pattern(path)
            locations = _list_files(filesystem, root, re.compile(_to_regex(pattern)).fullmatch) if pattern else []
    except OSError as failure:
        if failure.errno is not None and not isinstance(failure, PermissionError):
            raise
        raise _missing_error(data, source, f"{source} cannot be listed: {failure}") from failure
    if not locations:
        kind = data.kind.capitalize() if data.kind == "parquet" else data.kind
        is_folder = info.type == pafs.FileType.Directory
        raise _missing_error(data, source, f"there is no {kind} {'in the folder' if is_folder else 'file'} {source}")
    return locations


def identify_files(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns what changes when a file's content does: its path with its sha256, or with the store's own version."""
    return [_identity(location, origin.source) for location in find_files(data, origin.source)]


def is_selected(origin: SourceFile, relative: str) -> bool:
    """Whether the origin's pattern `files` is found in this path inside a folder or zip; always, without a pattern."""
    return origin.files is None or re.search(origin.files, relative) is not None


def match_path_pattern(data: DataSource, relative: str) -> dict[str, str | None] | None:
    """Returns the columns that `path_pattern` finds in a file's path; None if the path does not match."""
    if data.path_pattern is None:
        return {}
    match = re.search(data.path_pattern, relative)
    return match.groupdict() if match else None


def partition_values(relative: str) -> dict[str, str | None]:
    """Returns the columns of folders named `column=value`."""
    pairs = [part.split("=", 1) for part in PurePosixPath(relative).parts[:-1] if "=" in part]
    return {name: None if value == _NULL_PARTITION else unquote(value) for name, value in pairs}


def folder_label(relative: str) -> str | None:
    """Returns the name of the file's folder, below the folder that the recipe names; None directly inside it."""
    return PurePosixPath(relative).parent.name or None


def open_filesystem(source: str) -> tuple[pafs.FileSystem, str]:
    """Returns the file system of a path here, in S3 or in HDFS, and the path in it."""
    scheme = source_scheme(source)
    if scheme is None:
        return pafs.LocalFileSystem(), str(Path(source).absolute())
    if scheme == "s3":
        return _open_s3(), source.removeprefix("s3://").rstrip("/")
    try:
        return pafs.FileSystem.from_uri(source)
    except OSError as failure:
        raise EngineMissing(
            f"the client of HDFS does not start: {failure}",
            required="a Hadoop client with libhdfs, and HADOOP_HOME, CLASSPATH and JAVA_HOME set for it",
            where=source,
            remedy="run on a machine with the cluster's client",
        ) from failure


def _open_s3() -> pafs.S3FileSystem:
    """Opens S3 with the credentials, region and endpoint of AWS's own environment variables."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return pafs.S3FileSystem(**({"endpoint_override": endpoint} if endpoint else {}), region=region or "us-east-1")


def _list_files(filesystem: pafs.FileSystem, root: str, is_match: Callable[[str], object]) -> list[FileLocation]:
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    locations = []
    for info in filesystem.get_file_info(selector):
        relative = info.path[len(root) :].lstrip("/") if root else info.path
        if info.type == pafs.FileType.File and not is_hidden(relative) and is_match(relative):
            locations.append(FileLocation(filesystem, info.path, relative))
    return sorted(locations, key=lambda location: location.relative)


def _is_of_format(data: DataSource, relative: str) -> bool:
    """Whether a file in a folder has rows of the source, by its name.

    The package `datasets` keeps changed copies of the rows, `cache-….arrow`, beside them.
    """
    is_copy = data.kind == "huggingface" and PurePosixPath(relative).name.startswith("cache-")
    return not is_copy and suffix_without_compression(relative) in suffixes_of(data.kind, data.unit)


def is_hidden(relative: str) -> bool:
    """Whether a file or one of its folders has a name that begins with a dot or an underscore."""
    return any(part.startswith((".", "_")) and "=" not in part for part in PurePosixPath(relative).parts)


def _split_pattern(path: str) -> tuple[str, str]:
    """Returns the folder in front of the first wildcard, and the pattern behind it."""
    parts = path.split("/")
    first = next((index for index, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _to_regex(pattern: str) -> str:
    """Translates wildcards: `*` and `?` match inside a folder's name, `**/` any number of folders."""
    translations = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern)
    return "".join(
        translations.get(piece)
        or (piece.replace("[!", "[^", 1) if re.fullmatch(r"\[.+\]", piece) else re.escape(piece))
        for piece in pieces
    )


def _identity(location: FileLocation, source: str) -> Sequence[object]:
    scheme = source_scheme(source)
    if scheme is None:
        return [location.relative, digest_of_file(Path(location.path))]
    info = location.filesystem.get_file_info(location.path)
    if scheme == "s3":
        with location.open_file() as file:
            metadata = {str(key).lower(): str(value) for key, value in (file.metadata() or {}).items()}
        return [location.relative, location.path, info.size, metadata.get("etag")]
    return [location.relative, location.path, info.size, info.mtime_ns]


def _missing_error(data: DataSource, source: str, problem: str) -> DataMissing:
    suffixes = ", ".join(SUFFIXES[data.kind])
    return DataMissing(
        problem,
        required=f"a file of format {data.kind}, a folder with files that end in {suffixes}, or a pattern",
        where="the recipe's `data` (a relative path starts at the recipe's folder)",
        remedy="correct the path or the `format` in the recipe, or put the data there" + obtain_hint(data),
    )


def obtain_hint(data: DataSource) -> str:
    """Returns the origin of the data, to be appended to a remedy; empty if the recipe has none."""
    return f": {data.obtain}" if data.obtain else ""
