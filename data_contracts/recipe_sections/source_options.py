"""The options of `data` that each format has."""

from __future__ import annotations

_OF_COLUMNS = ("drop", "flatten", "rename", "normalize", "missing", "replace", "lists", "media")
_OF_ROWS = ("row_id", *_OF_COLUMNS)
_OF_FILES = ("files", "path_pattern", *_OF_ROWS)
_OF_CELLS = ("strip", "decimal", "thousands", "units", "numbers")
OF_TEXT_CELLS = ("csv", "xlsx", "sqlite")
OF_ONE_SOURCE = ("labels", "records", "arrays", "files")  # where there are `sources`, each of them has its own
OPTIONS: dict[str, tuple[str, ...]] = {
    "parquet": _OF_FILES,
    "orc": _OF_FILES,
    "arrow": _OF_FILES,
    "jsonl": ("encoding", "numbers", *_OF_FILES),
    "json": ("encoding", "records", "columns", "numbers", *_OF_FILES),
    "csv": (
        *("encoding", "delimiter", "quote", "escape", "header", "columns", "strip", "comment", "skip_lines"),
        *("skip_initial_space", "trailing_delimiter", "unquoted_missing"),
        *("decimal", "thousands", "units", "numbers", "unit"),
        *_OF_FILES,
    ),
    "text": ("encoding", "unit", *_OF_FILES),
    "images": ("mode", "size", *_OF_FILES),
    "audio": ("sample_rate", "resample", "mono", *_OF_FILES),
    "idx": ("labels", *_OF_ROWS),
    "xlsx": ("sheet", "header", "columns", "skip_lines", *_OF_CELLS, *_OF_FILES),
    "sqlite": ("table", "query", *_OF_CELLS, *_OF_FILES),
    "arff": ("encoding", *_OF_FILES),
    "stata": _OF_FILES,
    "numpy": ("arrays", "labels", "columns", "unit", *_OF_FILES),
    "huggingface": ("mode", "size", "sample_rate", "resample", "mono", *_OF_FILES),
    "sklearn": _OF_COLUMNS,
    "delta": ("version", *_OF_ROWS),
    "iceberg": ("version", *_OF_ROWS),
    "sql": ("query", "uri_variable", *_OF_ROWS),
    "hive": _OF_ROWS,
}
