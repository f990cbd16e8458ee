"""Infers how a source is read: the options that a recipe needs and the user has not given, once and in writing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.data_contracts.recipe_sections.source_options import OF_ONE_SOURCE
from bloomery.models.features.splits import SPLITS
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.scaffolding.source_options.application_options import (
    APPLICATIONS,
    find_label_array,
    infer_application_options,
)
from bloomery.tasks.scaffolding.source_options.bare_markers import find_bare_markers
from bloomery.tasks.scaffolding.source_options.csv_dialect import infer_dialect
from bloomery.tasks.scaffolding.source_options.format_detection import detect_format, find_label_file, read_image_shape
from bloomery.tasks.scaffolding.source_options.json_options import infer_json_options
from bloomery.tasks.scaffolding.source_options.media_options import (
    ANY_TARGET,
    MediaTarget,
    infer_audio_options,
    infer_image_options,
    media_files,
)
from bloomery.tasks.scaffolding.source_options.sequence_options import (
    are_sequence_files,
    assign_files,
    find_labelled_files,
    holds_sequences,
    infer_sequence_options,
)
from bloomery.tasks.scaffolding.source_options.split_folders import infer_split_folders

_DIALECT_OPTIONS = (
    *("encoding", "delimiter", "quote", "escape", "header", "columns", "comment", "skip_lines"),
    *("skip_initial_space", "trailing_delimiter"),
)


class UserOptions(NamedTuple):
    """What the user has said about the source, by the names of a recipe's `data`; None is to be inferred."""

    format: str | None = None
    delimiter: str | None = None
    columns: tuple[str, ...] | None = None
    path_pattern: str | None = None
    query: str | None = None
    uri_variable: str | None = None
    drop: tuple[str, ...] | None = None
    encoding: str | None = None
    quote: str | None = None
    escape: str | None = None
    header: bool | None = None
    missing: tuple[str, ...] | None = None
    strip: bool | None = None
    comment: str | None = None
    skip_lines: int | None = None
    skip_initial_space: bool | None = None
    trailing_delimiter: bool | None = None
    decimal: str | None = None
    thousands: str | None = None
    units: tuple[str, ...] | None = None
    numbers: tuple[str, ...] | None = None
    records: str | None = None
    unit: str | None = None
    mode: str | None = None
    size: tuple[int, ...] | None = None
    sample_rate: int | None = None
    resample: bool | None = None
    mono: bool | None = None
    labels: str | None = None
    version: int | None = None
    files: str | None = None
    sheet: str | None = None
    table: str | None = None
    arrays: dict[str, str] | None = None
    unquoted_missing: tuple[str, ...] | None = None

    @property
    def stated(self) -> dict[str, Any]:
        """The options that the user has stated, without the format."""
        return {name: value for name, value in self._asdict().items() if value is not None and name != "format"}


class ReaderOptions(NamedTuple):
    """The options of `data`, the reasons for some, and the sizes of an array, where the source states them."""

    data: DataSource
    notes: dict[str, str]
    array_shape: tuple[int, ...]


def infer_reader_options(
    sources: Sequence[str], label: str, user_options: UserOptions, target: MediaTarget = ANY_TARGET
) -> ReaderOptions:
    """Returns how to read `sources`: one path, or several as `train=PATH`, `test=PATH`.

    Images and recordings are read as a network reads them that has this `target`.

    Raises:
        DataMissing: there is no such source, or its format cannot be detected.
        RecipeInvalid: the user's options do not fit the source.
    """
    splits = _parse_splits(sources)
    paths = [path for _, path in splits]
    kind = user_options.format or ("json" if user_options.records is not None else detect_format(paths[0]))
    stated = user_options.stated
    is_open = user_options.format is None and user_options.unit is None
    if kind == "text" and is_open and holds_sequences(paths[0], label):
        kind, stated = "csv", {**stated, "unit": "file"}
    in_sources: dict[str, Any] = {
        name: stated.pop(name) for name in OF_ONE_SOURCE if splits[0][0] is not None and name in stated
    }
    origins: dict[str, Any]
    if splits[0][0] is None:
        origins = {"source": paths[0], **_label_file(paths[0], kind)}
    else:
        origins = {
            "sources": [
                {"source": path, "part": split, **_label_file(path, kind), **in_sources} for split, path in splits
            ]
        }
    options = {**origins, **_format_option(paths[0], kind)}
    _validate({**options, **stated, **_minimal_options(kind, stated)})
    notes: dict[str, str] = dict.fromkeys(stated, "as requested")
    array_shape: tuple[int, ...] = ()
    if kind == "csv":
        csv_options, csv_notes = _infer_csv_options(paths, label, stated, user_options.files)
        options = _without_source(options) | csv_options if "sources" in csv_options else options | csv_options
        notes |= {name: note for name, note in csv_notes.items() if name not in stated or note != "as requested"}
    elif kind in ("json", "jsonl"):
        has_records = bool(in_sources) or "records" in stated
        options, json_notes = infer_json_options(options, kind, label, stated, has_records=has_records)
        notes = json_notes | notes
    elif kind in APPLICATIONS:
        application = infer_application_options(kind, paths, label, {**stated, **in_sources}, target)
        options |= application.options
        notes |= {name: note for name, note in application.notes.items() if name not in stated}
        array_shape = application.array_shape
        if application.origins:
            options = {"sources": list(application.origins), **_without_source(options)}
    elif kind == "images":
        media = infer_image_options(media_files(paths, "images"), ", ".join(paths), target)
        options, notes, array_shape = options | media.options, media.notes | notes, media.array_shape
    elif kind == "audio":
        media = infer_audio_options(media_files(paths, "audio"), target)
        options, notes = options | media.options, media.notes | notes
    elif kind == "text":
        options["unit"] = "file"
    elif kind == "idx":
        array_shape = read_image_shape(paths[0])
    kept = {name: value for name, value in stated.items() if name not in _DIALECT_OPTIONS or kind != "csv"}
    data, notes = _with_split_folders(_validate({**options, **kept}), label, notes)
    if data.mode is not None and len(array_shape) == 3:
        array_shape = (1 if data.mode == "L" else 3, *(data.size or array_shape[1:]))
    return ReaderOptions(data, notes, array_shape)


def _with_split_folders(data: DataSource, label: str, notes: dict[str, str]) -> tuple[DataSource, dict[str, str]]:
    """Returns a source for each split where the folders of classes lie in folders named by splits."""
    is_by_folder = data.kind in ("images", "audio") or (data.kind == "text" and data.unit == "file")
    if not is_by_folder or label != "label" or data.source is None or data.files or data.path_pattern:
        return data, notes
    options, split_notes = infer_split_folders(data)
    if not options:
        return data, notes
    return _validate({**_without_source(recipe_options(data)), **options}), notes | split_notes


def _infer_csv_options(
    paths: Sequence[str], label: str, stated: dict[str, Any], pattern: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the dialect of CSV files; where each holds a sequence, also the options that read it as a row."""
    files = [file for path in paths for file in _find_csv_files(path, pattern, stated.get("unit"))]
    options: dict[str, Any] = {}
    notes: dict[str, str] = {}
    if pattern is None and len(paths) == 1 and len(files) > 1 and stated.get("unit") != "file":
        labelled = find_labelled_files(files, label)
        by_part = assign_files(files) if len(labelled) == len(files) and "path_pattern" not in stated else {}
        if len(labelled) == 1:
            files = labelled
            options["files"] = _pattern_of(labelled[0])
            notes["files"] = f"it is the only file with {label}"
        elif by_part:
            options["sources"] = [
                {"source": paths[0], "files": _pattern_of(file), "part": part} for part, file in by_part.items()
            ]
            notes["sources"] = "the names of the files say which split they are"
    known = {name: stated[name] for name in _DIALECT_OPTIONS if name in stated}
    may_be_sequences = "unit" not in stated and "path_pattern" not in stated
    if stated.get("unit") == "file" or (may_be_sequences and are_sequence_files(files, label)):
        return infer_sequence_options(files, {**known, "drop": stated.get("drop", ())})
    if "path_pattern" in stated and len(files) > 1:
        notes["path_pattern"] = "as requested; each line of a file is a row, unless --unit is file"
    dialect = infer_dialect(files, label, known)
    options, notes = {**options, **dialect.options}, {**notes, **dialect.notes}
    markers = find_bare_markers(files, dialect.options) if not {"unquoted_missing", "missing"} & stated.keys() else []
    if markers:
        options["unquoted_missing"] = markers
        notes["unquoted_missing"] = "columns with texts in quotes have them without quotes, as R writes missing values"
    return options, notes


def _pattern_of(file: FileLocation) -> str:
    return f"^{re.escape(file.relative)}$"


def _find_csv_files(path: str, pattern: str | None, unit: str | None) -> list[FileLocation]:
    data = DataSource.model_validate({"source": path, "format": "csv", "unit": unit})
    return locations.find_row_files(data, SourceFile(source=path, files=pattern))


def _without_source(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "source"}


def _minimal_options(kind: str, stated: dict[str, Any]) -> dict[str, Any]:
    """Returns options that a source of this kind requires and that are inferred if the user has not stated them."""
    if kind == "images" and "mode" not in stated:
        return {"mode": "L"}
    if kind == "audio" and "sample_rate" not in stated:
        return {"sample_rate": 1}
    return (
        {"columns": ["column_1"]} if kind == "csv" and stated.get("header") is False and "columns" not in stated else {}
    )


def recipe_options(data: DataSource) -> dict[str, Any]:
    """Returns the options as a recipe writes them."""
    return data.model_dump(mode="json", exclude_none=True)


def _validate(options: dict[str, Any]) -> DataSource:
    try:
        return DataSource.model_validate(options)
    except ValidationError as failure:
        messages = "; ".join(str(error["msg"]).removeprefix("Value error, ") for error in failure.errors())
        raise RecipeInvalid(
            f"the source cannot be read with these options: {messages}",
            required="a source and options that fit each other",
            where="the command line",
            remedy="correct these options; `bloomery init --help` lists all of them",
        ) from failure


def _parse_splits(sources: Sequence[str]) -> list[tuple[str | None, str]]:
    """Returns each source's split and path; a single source without a split has None."""
    pieces = [source.partition("=") for source in sources]
    splits = [(name, path) for name, sign, path in pieces if sign and path and name in SPLITS]
    if len(splits) == len(sources) and {"train", "test"} <= {name for name, _ in splits}:
        return list(splits)
    if splits or len(sources) != 1:
        raise RecipeInvalid(
            f"the sources are {', '.join(sources)}",
            required="one source; or several, each as train=PATH, val=PATH or test=PATH, with at least train and test",
            where="--data",
            remedy="name the split of each source, or put files of one format into one folder",
        )
    return [(None, sources[0])]


def _label_file(path: str, kind: str) -> dict[str, str]:
    finders = {"idx": find_label_file, "numpy": find_label_array}
    label_file = finders[kind](path) if kind in finders else None
    return {"labels": label_file} if label_file else {}


def _format_option(path: str, kind: str) -> dict[str, str]:
    """Returns the option `format`, where neither suffix nor scheme implies it."""
    minimal = {"mode": "L"} if kind == "images" else {}
    with contextlib.suppress(ValidationError):
        if DataSource.model_validate({"source": path, **minimal}).kind == kind:
            return {}
    return {} if kind in ("sql", "sklearn", "delta", "iceberg", "hive") else {"format": kind}
