"""The paths of sources: schemes, suffixes that name a format, and variables."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv"),
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "orc": (".orc",),
    "arrow": (".arrow", ".feather", ".ipc"),
    "text": (".txt",),
    "images": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    "audio": (".wav",),
    "idx": (".idx", ".idx1", ".idx3"),
    "xlsx": (".xlsx", ".xlsm"),
    "sqlite": (".sqlite", ".sqlite3", ".db3"),
    "arff": (".arff",),
    "numpy": (".npz", ".npy"),
    "stata": (".dta",),
    "huggingface": (".arrow", ".parquet"),  # a folder with the features in its files
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}  # the suffix and Arrow's name for it
TABLES = ("sklearn", "delta", "iceberg", "sql", "hive")  # sources that are not files: `sklearn:NAME` and so on
REMOTE = ("s3://", "hdfs://")
_COMPRESSED = ("csv", "jsonl", "json", "text", "idx", "arff")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}(?=/|$)")


def source_scheme(source: str) -> str | None:
    """The scheme of a source that is not a local path, such as `s3` or `sklearn`; else None."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", source)
    return match[1] if match else None


def path_variable(path: str) -> str | None:
    """The environment variable that a path begins with, as in `${DATA}/rows.csv`, or None."""
    match = _VARIABLE.match(path)
    return match[1] if match else None


def suffixes_of(kind: str, unit: str | None) -> tuple[str, ...]:
    """The suffixes of the files of a format in a folder or zip. Files of sequences may end in .txt, too."""
    return (*SUFFIXES[kind], ".txt") if (kind, unit) == ("csv", "file") else SUFFIXES[kind]


def compression_codec(path: str) -> str | None:
    """Arrow's name of the compression that the suffix of `path` names, or None."""
    return COMPRESSIONS.get(PurePosixPath(path).suffix.lower())


def suffix_without_compression(path: str) -> str:
    """The suffix of `path` in lower case, without that of a compression."""
    pure = PurePosixPath(path)
    return (PurePosixPath(pure.stem) if compression_codec(path) else pure).suffix.lower()


def format_of_source(source: str, format_: str | None) -> str:
    """The format of a source.

    Raises:
        ValueError: the format is unknown or misplaced, or is not supported compressed.
    """
    scheme = source_scheme(source)
    if scheme in TABLES:
        if format_ is not None:
            raise ValueError(f"format: {scheme}: determines the format, so `format: {format_}` must be left out")
        if not source.removeprefix(f"{scheme}:"):
            raise ValueError(f"source: {scheme}: must be followed by a name")
        return scheme
    if scheme is not None and not source.startswith(REMOTE):
        schemes = ", ".join([*REMOTE, *(f"{name}:" for name in TABLES)])
        raise ValueError(f"source: unknown scheme {scheme}: in {source!r}; known: {schemes}, or a local path")
    suffix = suffix_without_compression(source)
    by_suffix = next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes), None)
    kind = format_ or by_suffix or ("parquet" if not suffix else None)
    if kind is None:
        raise ValueError(
            f"format: the suffix {suffix!r} of {source!r} names no format; set one of {', '.join(SUFFIXES)}"
        )
    if compression_codec(source) and kind not in _COMPRESSED:
        raise ValueError(f"source: compressed {kind} is not supported ({source!r}); only {', '.join(_COMPRESSED)}")
    return kind


def absolute_source(source: str, folder: Path) -> str:
    scheme = source_scheme(source)
    if scheme is None:
        return str((folder / source).resolve())
    path = source.removeprefix(f"{scheme}:")
    is_local = source_scheme(path) is None and (scheme == "delta" or path.endswith(".metadata.json"))
    return f"{scheme}:{(folder / path).resolve()}" if is_local and scheme in TABLES else source
