"""What format a source has, from its suffix or else from its first bytes. Asked once, when a recipe is drafted."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import (
    REMOTE,
    SUFFIXES,
    TABLES,
    compression_of,
    plain_suffix,
    scheme_of,
)

_START_BYTES = 65_536
_MAGIC = {b"PAR1": "parquet", b"ORC": "orc", b"ARROW1": "arrow"}
_TEXT_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")


def detect_format(source: str) -> str:
    """The format of the files of `source`, or the kind of table; `.txt` and `.json` count by their content.

    Raises:
        DataMissing: there is no such source, it is empty, or nothing tells what it is.
    """
    scheme = scheme_of(source)
    if scheme in TABLES:
        return str(scheme)
    by_suffix = _by_suffix(source)
    if by_suffix not in (None, "text", "json"):
        return str(by_suffix)
    if source.startswith(REMOTE):
        raise _unknown(source, "its suffix tells no format")
    path = Path(source)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path)
    matching = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))) if "*" in source else []
    if not matching:
        raise DataMissing(
            f"there is no file {source}",
            required="a file, a folder, a pattern, or a source such as sklearn:iris",
            where="--data",
            remedy="mend the path",
        )
    return _of_file(matching[0])


def read_image_shape(source: str) -> tuple[int, ...]:
    """The sizes of one array of the IDX file `source`, without their number; () where its start does not tell."""
    start = _start(Path(source))
    if len(start) < 4 or start[:2] != b"\0\0" or len(start) < 4 + 4 * start[3]:
        return ()
    return tuple(struct.unpack(f">{start[3]}I", start[4 : 4 + 4 * start[3]])[1:])


def find_label_file(source: str) -> str | None:
    """The IDX file with the labels of the arrays in `source`, if it lies beside it under the usual name."""
    path = Path(source)
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    beside = path.with_name(name)
    return str(beside) if name != path.name and beside.is_file() else None


def _by_suffix(source: str) -> str | None:
    suffix = plain_suffix(source)
    return next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def _of_folder(folder: Path) -> str:
    inner = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    found = sorted({kind for path in inner if (kind := _by_suffix(path.name)) is not None})
    if len(found) == 1:
        return found[0]
    told = f"it holds files of {', '.join(found)}" if found else f"none of its {len(inner)} files has a known suffix"
    raise _unknown(str(folder), told)


def _of_file(path: Path) -> str:
    start = _start(path)
    if not start:
        raise DataMissing(
            f"{path} is empty",
            required="a file with rows",
            where="--data",
            remedy="give another file",
        )
    by_magic = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if by_magic is not None:
        return by_magic
    if start.startswith(b"PK\x03\x04"):
        return _of_zip(path)
    if start[:2] == b"\0\0" and read_image_shape(str(path)):
        return "idx"
    if b"\0" in start and not start.startswith(_TEXT_MARKS):
        raise _unknown(str(path), f"it is no text, and begins with the bytes {start[:8].hex(' ')}")
    first = next((line for line in start.splitlines() if line.strip()), b"").lstrip(b"\xef\xbb\xbf").strip()
    if first[:1] in (b"{", b"["):
        return _of_json(path, first)
    return "csv"


def _of_json(path: Path, first: bytes) -> str:
    """A list is a document of rows; an object on the first line is the first of many rows."""
    try:
        if isinstance(json.loads(first), dict):
            return "jsonl"
    except ValueError:
        pass
    if first.startswith(b"["):
        return "json"
    raise _unknown(str(path), "it is one JSON object, whose list of rows a recipe must name (data.records)")


def _of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            kinds = {_by_suffix(name) for name in archive.namelist()}
    except zipfile.BadZipFile as failure:
        raise _unknown(str(path), f"it is no whole zip: {failure}") from failure
    media = sorted(kinds & {"images", "audio"}, key=str)
    if len(media) != 1:
        raise _unknown(str(path), "it is a zip that holds neither recordings alone nor images alone")
    return str(media[0])


def _start(path: Path) -> bytes:
    read: Callable[..., pa.NativeFile] = pafs.LocalFileSystem().open_input_stream
    try:
        with read(str(path.absolute()), compression=compression_of(str(path))) as stream:
            return bytes(stream.read(_START_BYTES))
    except (OSError, pa.ArrowInvalid) as failure:
        raise _unknown(str(path), str(failure)) from failure


def _unknown(source: str, found: str) -> DataMissing:
    return DataMissing(
        f"what format {source} has cannot be told: {found}",
        required=f"one of {', '.join(SUFFIXES)}",
        where="--data",
        remedy="state it with --format; or write the data as CSV, JSON lines or Parquet",
    )
