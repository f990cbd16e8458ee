"""Infers whether each file of a folder or zip holds one sequence, and which columns of these files have numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation, folder_label
from bloomery.tasks.ingest.readers.sequences.sequence_files import FirstFault
from bloomery.tasks.ingest.readers.text_files import delimited
from bloomery.tasks.scaffolding.source_options.csv_dialect import infer_dialect
from bloomery.tasks.scaffolding.source_options.split_names import SPLIT_NAMES, in_split_order
from bloomery.tasks.scaffolding.source_options.text_encoding import infer_encoding, read_sample

NO_LABEL = "\0"  # a text that no header has
_MIN_FILES = 2
_MAX_ALTERNATIVES = 20  # files of which one may be meant
_NUM_LINES = 5
_SAMPLE_BYTES = 4_096
_MIN_NUMBER_SHARE = 0.7  # of the words; a column of times may stand beside numbers
_NUM_SAMPLES = 3  # files that are looked into
_NUMBER = r"^\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
_DECIMAL_COMMA = r"^\s*[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?\s*$"


def have_folder_labels(files: Sequence[FileLocation], label: str) -> bool:
    """Whether there are several files, and the label may be the name of the folder of each."""
    folders = {folder_label(file.relative) for file in files}
    return len(files) >= _MIN_FILES and label == "label" and None not in folders and len(folders) > 1


def are_sequence_files(files: Sequence[FileLocation], label: str) -> bool:
    """Whether the label is that of each file: the name of its folder, and no word at the start of a file."""
    return have_folder_labels(files, label) and not any(_starts_with(file, label) for file in files[:_NUM_SAMPLES])


def holds_sequences(source: str, label: str) -> bool:
    """Whether the text files of a folder or zip are tables of numbers, and the label is the folder of each."""
    files = locations.find_row_files(DataSource(source=source, format="text"), SourceFile(source=source))
    return have_folder_labels(files, label) and _hold_numbers(files)


def _hold_numbers(files: Sequence[FileLocation]) -> bool:
    """Whether most words of text files are numbers, below a header: then they are tables."""
    for file in files[:_NUM_SAMPLES]:
        with file.open_stream() as stream:
            lines = stream.read(_SAMPLE_BYTES).decode("latin-1").splitlines()[1:-1]
        words = [word for line in lines for word in re.split(r"[\s,;]+", line) if word]
        if sum(re.fullmatch(_NUMBER, word) is not None for word in words) <= _MIN_NUMBER_SHARE * len(words):
            return False
    return True


def find_labelled_files(files: Sequence[FileLocation], label: str) -> list[FileLocation]:
    """Returns which of a few files have the label in their first lines; none where there are many files."""
    if len(files) > _MAX_ALTERNATIVES:
        return []
    return [file for file in files if _starts_with(file, label)]


def assign_files(files: Sequence[FileLocation]) -> dict[str, FileLocation]:
    """Returns the files by the split in their names: train and test, perhaps val; nothing if one has another name."""
    by_part: dict[str, FileLocation] = {}
    for file in files:
        words = re.findall(r"[a-z]+", PurePosixPath(file.relative).name.lower().partition(".")[0])
        parts = [SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES]
        if len(parts) != 1 or parts[0] in by_part:
            return {}
        by_part[parts[0]] = file
    if not {"train", "test"} <= by_part.keys():
        return {}
    return in_split_order(by_part)


def _starts_with(file: FileLocation, label: str) -> bool:
    """Whether a word of the first lines of a file is the label."""
    with file.open_stream() as stream:
        is_blank = not stream.peek(1)
    if is_blank:
        return False
    first_lines = read_sample(file, infer_encoding([file])[0]).splitlines()[:_NUM_LINES]
    return any(re.search(rf"(?<!\w){re.escape(label)}(?!\w)", line) for line in first_lines)


def infer_sequence_options(
    files: Sequence[FileLocation], stated: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the options that read a row of arrays from each file, and the reasons for them.

    Raises:
        DataMissing: the first file is empty or no text.
    """
    dialect = infer_dialect(files[:_NUM_SAMPLES], NO_LABEL, stated)
    options: dict[str, Any] = {"unit": "file", **dialect.options}
    notes = {"unit": "each file is a sequence, and its folder is its label", **dialect.notes}
    columns = _read_columns(files[0], options)
    num_points = {name: _count(column, _NUMBER) for name, column in columns.items()}
    num_commas = {name: _count(column, _DECIMAL_COMMA) for name, column in columns.items()}
    if (
        "decimal" not in stated
        and sum(num_commas.values()) > sum(num_points.values()) / 2
        and options["delimiter"] != ","
    ):
        options["decimal"], notes["decimal"] = ",", "most numbers have a decimal comma"
        num_points = {name: num_points[name] + num_commas[name] for name in columns}
    others = [name for name, num in num_points.items() if not num]
    if others and len(others) < len(columns):
        options["drop"] = [*stated.get("drop", ()), *others]
        notes["drop"] = "columns of the files without numbers"
    return options, notes


def _read_columns(file: FileLocation, options: Mapping[str, Any]) -> dict[str, pa.ChunkedArray]:
    """Returns the texts of the first rows of a file by column."""
    data = DataSource(source=file.path, format="csv", **{name: options[name] for name in options if name != "unit"})
    schema = delimited.read_schema(file, data)
    batches = list(islice(delimited.read_batches(file, data, schema, FirstFault()), 1))
    table = pa.Table.from_batches(batches, schema)
    return {name: table[name] for name in schema.names}


def _count(column: pa.ChunkedArray, pattern: str) -> int:
    return int(pc.sum(pc.match_substring_regex(column, pattern)).as_py() or 0)
