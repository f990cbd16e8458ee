"""Finds the list of rows in a JSON document that is one object, such as `{"data": [{…}, {…}]}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.readers.json_files.json_documents import rows_of_columns

_MAX_DEPTH = 6


class JsonRecords(NamedTuple):
    """The path of a list of rows, and the names of its columns where the rows are arrays.

    `path` is None where the document is an object of columns.
    """

    path: str | None
    columns: tuple[str, ...] | None
    num_rows: int

    @property
    def options(self) -> dict[str, Any]:
        """The options of `data` that read these rows."""
        records = {} if self.path is None else {"records": self.path}
        return records | ({} if self.columns is None else {"columns": list(self.columns)})


def find_records(source: str, encoding: str | None = None) -> JsonRecords | None:
    """Returns the longest list of rows in the document `source`, or else its longest object of columns.

    It is None if there is none. A document that is a list of rows has none, since it needs no path. Without an
    `encoding`, letters beyond ASCII are not read.
    """
    document = _read_object(source, encoding)
    if document is None:
        return None
    records = list(_iterate_records(document, ())) or list(_iterate_columns(document, ()))
    return max(records, key=lambda found: found.num_rows, default=None)


def describe_arrays(source: str) -> str:
    """Returns the lists of arrays of one length in the document `source`, with their paths; empty without any."""
    return ", ".join(_iterate_arrays(_read_object(source) or {}, ()))


def _read_object(source: str, encoding: str | None = None) -> dict[str, Any] | None:
    (file, *_) = locations.find_row_files(DataSource(source=source, format="json"), SourceFile(source=source))
    with file.open_stream() as stream:
        try:
            document = json.loads(_decode(stream.read(), encoding))
        except (ValueError, RecursionError):
            return None
    return document if isinstance(document, dict) else None


def _iterate_arrays(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict) and len(path) < _MAX_DEPTH:
            yield from _iterate_arrays(value, (*path, name))
        if isinstance(value, list) and len(value) > 1 and all(isinstance(row, list) for row in value):
            widths = {len(row) for row in value}
            if len(widths) == 1:
                yield f"{'.'.join((*path, name))} ({len(value):,} rows of {widths.pop()} values)"


def _decode(content: bytes, encoding: str | None) -> str:
    """Returns the text. Names in it are usually ASCII, so any encoding finds its rows where none is known."""
    if encoding is None:
        return content.decode(json.detect_encoding(content), "replace")
    return content.decode(encoding).removeprefix("\ufeff")


def _iterate_records(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[JsonRecords]:
    for name, value in node.items():
        if "." in name or not name:  # a path has points between names
            continue
        if isinstance(value, dict) and len(path) < _MAX_DEPTH:
            yield from _iterate_records(value, (*path, name))
        if isinstance(value, list) and value:
            place = ".".join((*path, name))
            if all(isinstance(item, dict) for item in value):
                yield JsonRecords(place, None, len(value))
            columns = _names_beside(node, value)
            if columns is not None:
                yield JsonRecords(place, columns, len(value))


def _iterate_columns(node: dict[str, Any], path: tuple[str, ...]) -> Iterator[JsonRecords]:
    rows = rows_of_columns(node)
    if rows is not None:
        yield JsonRecords(".".join(path) or None, None, len(rows))
        return
    for name, value in node.items():
        if isinstance(value, dict) and name and "." not in name and len(path) < _MAX_DEPTH:
            yield from _iterate_columns(value, (*path, name))


def _names_beside(node: dict[str, Any], rows: list[Any]) -> tuple[str, ...] | None:
    """Returns the names that another entry of `node` has for arrays of one length, as pandas writes them."""
    if not all(isinstance(row, list) for row in rows) or len({len(row) for row in rows}) != 1:
        return None
    for names in node.values():
        is_list = isinstance(names, list) and len(names) == len(rows[0])
        if is_list and all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names):
            return tuple(names)
    return None
