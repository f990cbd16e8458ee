"""Infers how files of particular applications are read: which sheet, table or arrays, and the header of a sheet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.application_files import sqlite, xlsx
from bloomery.tasks.ingest.readers.application_files.numpy_arrays import ArrayHeader, list_arrays, read_texts
from bloomery.tasks.scaffolding.source_options.csv_header import (
    MAX_HEADER_ROW,
    Row,
    find_header,
    fit_header,
    locate_label,
)
from bloomery.tasks.scaffolding.source_options.dataset_options import ApplicationOptions, infer_dataset_options
from bloomery.tasks.scaffolding.source_options.media_options import ANY_TARGET, MediaTarget
from bloomery.tasks.scaffolding.source_options.sequence_options import have_folder_labels
from bloomery.tasks.scaffolding.source_options.split_names import SPLIT_NAMES, in_split_order
from bloomery.tasks.scaffolding.source_options.text_encoding import infer_encoding

APPLICATIONS = ("xlsx", "sqlite", "arff", "numpy", "huggingface")
_MAX_ROWS = 500  # of a sheet, with which its header is found
_LABEL_NAMES = ("y", "label", "labels", "target", "targets", "class", "classes")
_LABEL_FILES = (("X", "y"), ("x", "y"), ("images", "labels"), ("features", "labels"), ("data", "labels"))


def infer_application_options(
    kind: str, paths: Sequence[str], label: str, stated: Mapping[str, Any], target: MediaTarget = ANY_TARGET
) -> ApplicationOptions:
    """Returns how the files at `paths` of an application's format `kind` are read. `stated` are options that are known.

    The network reads images and recordings as `target` says.

    Raises:
        DataMissing: a file cannot be read, or it is not clear which of its sheets or tables is meant.
    """
    if kind == "huggingface":
        return infer_dataset_options(paths, label, stated, target)
    if kind == "numpy":
        return _infer_arrays(paths, label, stated)
    origin = SourceFile(source=paths[0], files=stated.get("files"))
    files = locations.find_row_files(DataSource.model_validate({"source": paths[0], "format": kind}), origin)
    if kind == "xlsx":
        return _infer_sheet(files[0], label, stated)
    if kind == "sqlite":
        return _infer_table(files[0], label, stated)
    encoding, reason = infer_encoding(files, label) if "encoding" not in stated else ("utf-8", "")
    return ApplicationOptions(*(({}, {}) if encoding == "utf-8" else ({"encoding": encoding}, {"encoding": reason})))


def _infer_sheet(location: FileLocation, label: str, stated: Mapping[str, Any]) -> ApplicationOptions:
    options: dict[str, Any] = {"strip": True}
    notes: dict[str, str] = {}
    sheets = [stated["sheet"]] if "sheet" in stated else xlsx.list_sheets(location)
    rows_by_sheet = {sheet: _read_rows(location, sheet, int(stated.get("skip_lines", 0))) for sheet in sheets}
    if len(sheets) > 1:
        with_label = [sheet for sheet, rows in rows_by_sheet.items() if locate_label(rows, label) is not None]
        if len(with_label) == 1:
            sheets = with_label
            options["sheet"], notes["sheet"] = sheets[0], f"it is the only sheet with {label}"
    if len(sheets) != 1 or not rows_by_sheet[sheets[0]]:
        next(xlsx.read_sheet(location, stated.get("sheet")), None)  # the error lists the sheets
        return ApplicationOptions(options, notes)
    known = {**stated, "trailing_delimiter": False}
    header = find_header(rows_by_sheet[sheets[0]], label, known)
    fitted = fit_header(header, known, location)
    num_skipped = fitted.last_line if fitted.replaces_header else header.first_line - 1
    if num_skipped and "skip_lines" not in stated:
        options["skip_lines"] = num_skipped
        notes["skip_lines"] = f"the table begins in row {num_skipped + 1}"
    return ApplicationOptions({**options, **fitted.options}, {**notes, **fitted.notes})


def _read_rows(location: FileLocation, sheet: str, num_skipped: int) -> list[Row]:
    """Returns the first rows of a sheet, all of one width, without empty columns on the left and on the right."""
    sheet_rows = list(islice(xlsx.read_sheet(location, sheet), num_skipped + _MAX_ROWS + MAX_HEADER_ROW))
    sheet_rows = [row for row in sheet_rows if row.number > num_skipped]
    counts = Counter(index for row in sheet_rows for index, cell in enumerate(row.cells) if cell)
    if not counts:
        return []
    # A title or a note beside the table is no column of it.
    used = [index for index, num in counts.items() if num > 1] or [*counts]
    columns = range(min(used), max(used) + 1)
    return [
        Row(
            [(row.cells[index] or "").strip() if index < len(row.cells) else "" for index in columns],
            row.number,
            row.number,
        )
        for row in sheet_rows
        if any(cell for index, cell in enumerate(row.cells) if index in columns)
    ]


def _infer_table(location: FileLocation, label: str, stated: Mapping[str, Any]) -> ApplicationOptions:
    options: dict[str, Any] = {"strip": True}
    if "table" in stated or "query" in stated:
        return ApplicationOptions(options, {})
    broken_views = sqlite.list_broken_views(location)
    listed = ", ".join(f"view {name} ({reason})" for name, reason in broken_views.items())
    unread = f"; not read: {listed}" if broken_views else ""
    tables = sqlite.list_tables(location)
    with_label = [table for table in tables if label in sqlite.list_columns(location, table)]
    if len(tables) > 1 and len(with_label) == 1:
        reason = f"it is the only table with {label}{unread}"
        return ApplicationOptions({**options, "table": with_label[0]}, {"table": reason})
    if len(tables) == 1 and broken_views:
        return ApplicationOptions({**options, "table": tables[0]}, {"table": f"it is the only table{unread}"})
    return ApplicationOptions(options, {})


def _infer_arrays(paths: Sequence[str], label: str, stated: Mapping[str, Any]) -> ApplicationOptions:
    data = DataSource.model_validate({"source": paths[0], "format": "numpy", "unit": "file"})
    files = locations.find_row_files(data, SourceFile(source=paths[0], files=stated.get("files")))
    if stated.get("unit") == "file" or have_folder_labels(files, label):
        return ApplicationOptions({"unit": "file"}, {"unit": "each file is a sequence, and its folder is its label"})
    headers = list_arrays(paths[0])
    if headers and headers[0].member is None:
        return ApplicationOptions({}, {}, headers[0].image_shape)
    if "arrays" in stated:
        chosen = [header for header in headers if header.column in stated["arrays"].values()]
        return ApplicationOptions({}, {}, _image_shape(chosen, label))
    by_split = _group_by_split(headers) if len(paths) == 1 else {}
    if by_split:
        origins = tuple(
            {"source": paths[0], "part": split, "arrays": _name_label(arrays, label)}
            for split, arrays in by_split.items()
        )
        note = "the names of the arrays say which split they are"
        chosen = [header for header in headers if header.column in by_split["train"].values()]
        return ApplicationOptions({}, {"sources": note}, _image_shape(chosen, label), origins)
    return _infer_table_of_arrays(headers, label, stated)


def _infer_table_of_arrays(headers: list[ArrayHeader], label: str, stated: Mapping[str, Any]) -> ApplicationOptions:
    """Returns which arrays have an entry for each row, and which one has the names of columns."""
    lengths = Counter(header.num_rows for header in headers if header.shape)
    if not lengths:
        return ApplicationOptions({}, {})
    labelled = [header for header in headers if header.column == label and header.shape]
    num_rows = labelled[0].num_rows if labelled else max(lengths, key=lambda length: (lengths[length], length))
    chosen = [header for header in headers if header.shape and header.num_rows == num_rows]
    options: dict[str, Any] = {}
    notes: dict[str, str] = {}
    matrices = [header for header in chosen if len(header.shape) == 2 and header.shape[1] > 1]
    if len(matrices) == 1 and "columns" not in stated:
        names = [header for header in headers if header.type.kind in "SU" and header.shape == (matrices[0].shape[1],)]
        texts = read_texts(names[0]) if len(names) == 1 and names[0] not in chosen else []
        if texts and all(texts) and len(set(texts)) == len(texts):
            options["columns"], notes["columns"] = texts, f"array {names[0].column} has these names"
    arrays = _name_label({header.column: header.column for header in chosen}, label)
    if len(chosen) < len(headers) or any(column != array for column, array in arrays.items()):
        options["arrays"] = arrays
        notes["arrays"] = f"they have {num_rows:,} entries each"
    return ApplicationOptions(options, notes, _image_shape(chosen, label))


def find_label_array(path: str) -> str | None:
    """Returns the .npy file with the labels of the arrays in `path`, if it has the usual name in the same folder."""
    file = Path(path)
    if file.suffix.lower() != ".npy":
        return None
    candidates = [file.with_name(file.name.replace(part, other)) for part, other in _LABEL_FILES if part in file.name]
    return next((str(candidate) for candidate in candidates if candidate != file and candidate.is_file()), None)


def _group_by_split(headers: Sequence[ArrayHeader]) -> dict[str, dict[str, str]]:
    """Returns the arrays by split and column, such as x_train and y_train; nothing unless train and test agree."""
    by_split: dict[str, dict[str, str]] = {}
    for header in headers:
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", header.column)
        splits = [SPLIT_NAMES[word.lower()] for word in words if word.lower() in SPLIT_NAMES]
        rest = "_".join(word for word in words if word.lower() not in SPLIT_NAMES)
        if len(splits) == 1 and rest:
            by_split.setdefault(splits[0], {})[rest] = header.column
    is_complete = {"train", "test"} <= by_split.keys()
    if not is_complete or any(set(arrays) != set(by_split["train"]) for arrays in by_split.values()):
        return {}
    return in_split_order(by_split)


def _name_label(arrays: Mapping[str, str], label: str) -> dict[str, str]:
    """Returns the arrays by column; that of the usual name of labels is the column `label`, if there is none."""
    if label in arrays:
        return dict(arrays)
    matches = [column for column, array in arrays.items() if array == label]
    matches = matches or [column for column in arrays if column.lower() in _LABEL_NAMES]
    if len(matches) != 1:
        return dict(arrays)
    return {label if column == matches[0] else column: array for column, array in arrays.items()}


def _image_shape(headers: Collection[ArrayHeader], label: str) -> tuple[int, ...]:
    """Returns channels, height and width, where one of the arrays holds images."""
    shapes = [header.image_shape for header in headers if header.column != label and header.image_shape]
    return shapes[0] if len(shapes) == 1 else ()
