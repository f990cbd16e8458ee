"""Detects the format of a source from its suffix or else from its first bytes, once, when a recipe is drafted."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.source_paths import (
    REMOTE,
    SUFFIXES,
    TABLES,
    compression_codec,
    source_scheme,
    suffix_without_compression,
)
from bloomery.tasks.ingest.locations import is_hidden
from bloomery.tasks.ingest.readers.application_files import huggingface
from bloomery.tasks.ingest.readers.application_files.xlsx import OLE_MAGIC
from bloomery.tasks.ingest.zip_members import ZIP_ERRORS
from bloomery.tasks.scaffolding.source_options.json_records import describe_arrays, find_records

_START_BYTES = 65_536
_MAGIC_BYTES = {b"PAR1": "parquet", b"ORC": "orc", b"ARROW1": "arrow"} | {
    b"SQLite format 3\0": "sqlite",
    b"\x93NUMPY": "numpy",
}
_ARFF_START = re.compile(rb"(?i)(\xef\xbb\xbf)?(\s*(%[^\n]*)?\n)*\s*@relation\b")
_HTML_START = re.compile(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|table|head)\b")
_WORKBOOK_MAGIC = (b"PK", OLE_MAGIC)
_BESIDE_DATA = ("xlsx", "sqlite", "text")  # formats of files that may lie beside the data in a folder or zip
_ABOUT_DATA = re.compile(r"(?i)(readme|licen[cs]e|copying|notice|citation|changelog|attribution)")
# Files that are not read, by the end of their names: what they are, and what to do.
_CONVERT = "write its table as CSV or Parquet"
_FOREIGN_FILES = {
    ".sav": ("a file of SPSS", "save it there as CSV or as Stata's .dta"),
    ".zsav": ("a file of SPSS", "save it there as CSV or as Stata's .dta"),
    **dict.fromkeys(
        (".sas7bdat", ".xpt"), ("a file of SAS", "export it as CSV (PROC EXPORT), or with pandas.read_sas")
    ),
    **dict.fromkeys((".rds", ".rdata", ".rda"), ("a file of R", f"{_CONVERT} in R: write.csv(table, 'rows.csv')")),
    **dict.fromkeys(
        (".pkl", ".pickle", ".joblib"), ("a pickle, which may execute code", f"{_CONVERT}: DataFrame.to_parquet")
    ),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), ("a file of HDF5", f"{_CONVERT}, or its arrays with numpy.savez")),
    ".mat": ("a file of MATLAB", f"{_CONVERT} with writetable, or its arrays with numpy.savez"),
    ".ods": ("a sheet of LibreOffice", "save it as .xlsx"),
    ".dbf": ("a table of dBASE", "save it as CSV in LibreOffice"),
    **dict.fromkeys((".mdb", ".accdb"), ("a database of Access", "export its table as CSV")),
    **dict.fromkeys(
        (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), ("a tar archive", "unpack it: tar xf FILE, or pack a .zip")
    ),
    **dict.fromkeys((".7z", ".rar"), ("an archive", "unpack it, or pack a .zip")),
    ".xz": ("compressed with xz", "unpack it: xz -d FILE; .gz, .bz2, .zst and .lz4 are read"),
    ".avro": ("a file of Avro", _CONVERT),
}
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")


def detect_format(source: str) -> str:
    """Returns the format of the files of `source`, or the kind of table. The content decides for `.txt` and `.json`.

    Raises:
        DataMissing: there is no such source, it is empty, or its format cannot be detected.
    """
    scheme = source_scheme(source)
    if scheme in TABLES:
        return str(scheme)
    _require_known_file(source)
    by_suffix = _detect_by_suffix(source)
    if by_suffix in ("parquet", "arrow") and Path(source).is_file() and huggingface.has_features(Path(source)):
        return "huggingface"
    if by_suffix == "xlsx" and Path(source).is_file() and not _read_start(Path(source)).startswith(_WORKBOOK_MAGIC):
        return _detect_in_file(Path(source))  # programs give the suffix of workbooks to CSV and HTML
    if by_suffix not in (None, "text", "json"):
        return str(by_suffix)
    if source.startswith(REMOTE):
        raise _detection_error(source, "its suffix is of no known format")
    path = Path(source)
    if path.is_dir():
        return _detect_in_folder(path)
    if path.is_file():
        return _detect_in_file(path)
    matches = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))) if "*" in source else []
    if not matches:
        raise DataMissing(
            f"there is no file {source}",
            required="a file, a folder, a pattern, or a source such as sklearn:iris",
            where="--data",
            remedy="correct the path",
        )
    return _detect_in_file(matches[0])


def _require_known_file(source: str) -> None:
    """Raises DataMissing for a file of a program whose files are not read, by its suffix."""
    for suffix in sorted(_FOREIGN_FILES, key=len, reverse=True):
        if source.lower().endswith(suffix) and Path(source).is_file():
            what, remedy = _FOREIGN_FILES[suffix]
            raise DataMissing(
                f"{source} is {what}",
                required=f"files of one of the formats {', '.join(SUFFIXES)}",
                where="--data",
                remedy=remedy,
            )


def read_image_shape(source: str) -> tuple[int, ...]:
    """Returns the sizes of one array of the IDX file `source`, without their number; () if it has no IDX header."""
    start = _read_start(Path(source))
    if len(start) < 4 or start[:2] != b"\0\0" or len(start) < 4 + 4 * start[3]:
        return ()
    return tuple(struct.unpack(f">{start[3]}I", start[4 : 4 + 4 * start[3]])[1:])


def find_label_file(source: str) -> str | None:
    """Returns the IDX file with the labels of the arrays in `source`, if it has the usual name in the same folder."""
    path = Path(source)
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    label_file = path.with_name(name)
    return str(label_file) if name != path.name and label_file.is_file() else None


def _detect_by_suffix(source: str) -> str | None:
    suffix = suffix_without_compression(source)
    return next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def _detect_in_folder(folder: Path) -> str:
    if huggingface.is_dataset(folder):
        return "huggingface"
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    rows = [path for path in files if not _ABOUT_DATA.match(path.name)] or files
    formats = sorted({kind for path in rows if (kind := _detect_by_suffix(path.name)) is not None})
    if len(formats) > 1:
        formats = [kind for kind in formats if kind not in ("xlsx", "sqlite")] or formats
    if len(formats) == 1:
        return formats[0]
    if formats:
        raise _detection_error(str(folder), f"it has files of {', '.join(formats)}")
    raise _detection_error(str(folder), f"none of its {len(files)} files has a known suffix")


def _detect_in_file(path: Path) -> str:
    start = _read_start(path)
    if not start:
        raise DataMissing(
            f"{path} is empty",
            required="a file with rows",
            where="--data",
            remedy="choose another file",
        )
    by_magic_bytes = next((kind for magic, kind in _MAGIC_BYTES.items() if start.startswith(magic)), None)
    if by_magic_bytes is not None:
        return by_magic_bytes
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _detect_in_zip(path)
    if start.startswith(OLE_MAGIC):
        raise DataMissing(
            f"{path} has a password, or is a workbook of Excel 97 to 2003 (.xls)",
            required="a workbook (.xlsx) without a password",
            where="--data",
            remedy="open it in Excel or LibreOffice, and save it as .xlsx without a password",
        )
    if start[:2] == b"\0\0" and read_image_shape(str(path)):
        return "idx"
    return _detect_in_text(path, start)


def _detect_in_text(path: Path, start: bytes) -> str:
    """Returns the format of the text that begins with `start`, in the file or the zip `path`."""
    if b"\0" in start:
        text = start.decode(json.detect_encoding(start), "replace")
        if not start.startswith(_BYTE_ORDER_MARKS) and not text.lstrip().startswith(("{", "[")):
            raise _detection_error(str(path), f"it is no text, and begins with the bytes {start[:8].hex(' ')}")
        start = text.encode("utf-8", "replace")
    if _ARFF_START.match(start):
        return "arff"
    if _HTML_START.match(start):
        raise _detection_error(str(path), "it is HTML or XML")
    first_line = next((line for line in start.splitlines() if line.strip()), b"").lstrip(b"\xef\xbb\xbf").strip()
    if first_line[:1] in (b"{", b"["):
        return _detect_json(path, start)
    return "csv"


def _detect_json(path: Path, start: bytes) -> str:
    """Returns `json` for a list of rows or an object that holds one, and `jsonl` where each line is an object."""
    first_line, *other_lines = [line for line in start.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    try:
        is_object = isinstance(json.loads(first_line.decode("utf-8", "replace")), dict)
    except ValueError:
        is_object = False
    if first_line.lstrip().startswith(b"["):
        return "json"
    if is_object and (other_lines or find_records(str(path)) is None):
        return "jsonl"
    if find_records(str(path)) is not None:
        return "json"
    problem = "it is one JSON object: name its list of rows by --records, such as a.b"
    if lists := describe_arrays(str(path)):
        problem = (
            f"it is one JSON object with several lists of rows that name no columns: {lists}; choose one by --records"
        )
        problem += ", and name its columns by --columns"
    raise _detection_error(str(path), problem)


def _detect_in_zip(path: Path) -> str:
    """Returns the format of the files in a zip; a text such as a licence may lie beside them."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and not is_hidden(name)]
            start = archive.open(names[0]).read(_START_BYTES) if len(names) == 1 else b""
    except ZIP_ERRORS as failure:
        raise _detection_error(str(path), f"it is no complete zip without a password: {failure}") from failure
    if "[Content_Types].xml" in archive.namelist() and "xl/workbook.xml" in names:
        return "xlsx"
    if names and all(name.endswith(".npy") for name in names):
        return "numpy"
    if {"xl/workbook.bin", "content.xml"} & set(names):
        raise DataMissing(
            f"{path} is a document of an office program, but no .xlsx",
            required="a workbook (.xlsx)",
            where="--data",
            remedy="open it in that program, and save it as .xlsx",
        )
    kinds = {kind for name in names if (kind := _detect_by_suffix(name)) is not None}
    formats = sorted(kinds - set(_BESIDE_DATA) or kinds)
    if start and not kinds - {"text", "json"}:
        return _detect_in_text(path, start)
    if len(formats) != 1:
        listed = ", ".join(names[:20]) or "no files"
        problem = f"the zip has files of {', '.join(formats) or 'no known format'}: {listed}"
        raise DataMissing(
            f"the format of {path} cannot be detected: {problem}",
            required=f"files of one of the formats {', '.join(SUFFIXES)}",
            where="--data",
            remedy="set --format, and select files by a regular expression in --files",
        )
    return formats[0]


def _read_start(path: Path) -> bytes:
    try:
        compression = compression_codec(str(path))
        with pafs.LocalFileSystem().open_input_stream(str(path.absolute()), compression=compression) as stream:
            return bytes(stream.read(_START_BYTES))
    except (OSError, pa.ArrowInvalid) as failure:
        raise _detection_error(str(path), str(failure)) from failure


def _detection_error(source: str, problem: str) -> DataMissing:
    return DataMissing(
        f"the format of {source} cannot be detected: {problem}",
        required=f"one of {', '.join(SUFFIXES)}",
        where="--data",
        remedy="set --format, or write the data as CSV, JSON lines or Parquet",
    )
