"""Infers how JSON is read: its encoding, the list of rows in a document, and texts that mark a missing number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.json_files import json_documents, jsonlines
from bloomery.tasks.ingest.readers.json_files.json_types import ColumnTypes, ValueTypes
from bloomery.tasks.scaffolding.profiling.column_profiles import MARKERS
from bloomery.tasks.scaffolding.source_options.json_records import find_records
from bloomery.tasks.scaffolding.source_options.text_encoding import infer_encoding

_START_BYTES = 4


def infer_json_options(
    options: Mapping[str, Any], kind: str, label: str, stated: Mapping[str, Any], *, has_records: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the options that read files of this kind, with those given, and the reasons for them.

    Args:
        options: the sources and their format.
        stated: what the user has stated, which is not inferred.
        has_records: whether the user has stated the list of rows.

    Raises:
        DataMissing: there is no file, or one is no JSON.
    """
    inferred, notes = dict(options), dict[str, str]()
    if "encoding" not in stated:
        data = DataSource.model_validate({**inferred, "format": kind})
        files = [file for origin in data.source_files for file in locations.find_row_files(data, origin)]
        encoding, reason = _infer_encoding(files, label)
        if encoding != "utf-8":
            inferred["encoding"], notes["encoding"] = encoding, reason
    if kind == "json" and not has_records:
        inferred, records_notes = _add_records(inferred, str(stated.get("encoding", inferred.get("encoding", "utf-8"))))
        notes |= records_notes
    types = _read_types(DataSource.model_validate({**inferred, **stated, "format": kind}))
    numbers = _find_numbers(types, label) if "numbers" not in stated else []
    if numbers:
        inferred["numbers"] = numbers
        notes["numbers"] = "no value in the source has another type than text, and these are texts of numbers"
    missing = {name: texts for name, column in types.items() if (texts := _markers_of(column, name in numbers))}
    if missing and "missing" not in stated:
        inferred["missing"] = missing
        notes["missing"] = "these texts stand in columns whose other values are no texts"
    return inferred, notes


def _infer_encoding(files: Sequence[FileLocation], label: str) -> tuple[str, str]:
    """Returns the encoding, and how it was found. Without a byte order mark, zeros show UTF-16 (RFC 4627)."""
    with files[0].open_stream() as stream:
        encoding = json.detect_encoding(stream.peek(_START_BYTES)[:_START_BYTES])
    if encoding in ("utf-8", "utf-8-sig"):
        return infer_encoding(files, label)
    return encoding, "the first bytes of the file say so"


def _add_records(options: dict[str, Any], encoding: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the options with the list of rows of each document, where it is one object."""
    note = "it is the longest list of rows in the document"
    if "source" in options:
        records = find_records(options["source"], encoding)
        if records is None:
            return options, {}
        return {**options, **records.options}, {} if records.path is None else {"records": note}
    sources = []
    for origin in options["sources"]:
        records = find_records(origin["source"], encoding)
        path = {} if records is None or records.path is None else {"records": records.path}
        sources.append({**origin, **path})
        options |= {} if records is None or records.columns is None else {"columns": list(records.columns)}
    return {**options, "sources": sources}, {}


def _read_types(data: DataSource) -> dict[str, ValueTypes]:
    """Returns the types of the values of each column."""
    types = ColumnTypes(data)
    for origin in data.source_files:
        add_types = (
            jsonlines.add_types if data.kind == "jsonl" else partial(json_documents.add_types, records=origin.records)
        )
        for file in locations.find_row_files(data, origin):
            add_types(file, data, types=types)
    return types.columns


def _find_numbers(types: Mapping[str, ValueTypes], label: str) -> list[str]:
    """Returns the columns with texts of numbers, if the source has nothing but texts, as if it were converted from CSV.

    Beside values of other types, a text of digits is rather a code.
    """
    if any(column.counts.keys() - {"text"} for column in types.values()):
        return []
    return [
        name
        for name, column in types.items()
        if name != label and column.type_name(_count_markers(column), has_numbers=True) in ("integer", "number")
    ]


def _markers_of(column: ValueTypes, has_numbers: bool) -> list[str]:
    """Returns the texts that mark a missing value of a column of numbers or booleans; none of other columns."""
    is_text = column.type_name(_count_markers(column), has_numbers=has_numbers) not in ("integer", "number", "boolean")
    return [] if is_text else sorted(text for text in column.texts if text in MARKERS)


def _count_markers(column: ValueTypes) -> int:
    return sum(num for text, num in column.texts.items() if text in MARKERS)
