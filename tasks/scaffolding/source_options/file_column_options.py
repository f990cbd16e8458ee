"""Infers where the images and recordings are that a table's columns name, and how they are decoded."""

from __future__ import annotations

import math
import os
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import DataMissing, EngineMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.file_column import FileColumn
from bloomery.data_contracts.recipe_sections.source_paths import REMOTE, SUFFIXES, source_scheme
from bloomery.models.media.config import MediaUnreadable
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.ingest.file_columns.column_files import ColumnFiles, map_files
from bloomery.tasks.ingest.file_columns.file_names import URLS, folder_of, leading_folders
from bloomery.tasks.ingest.readers.media.media_files import MediaFile
from bloomery.tasks.scaffolding.profiling.column_names import matching_names
from bloomery.tasks.scaffolding.profiling.column_profiles import MARKERS
from bloomery.tasks.scaffolding.profiling.number_inference import InferredNumbers
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.profiling.source_rows import ROWS_FILE
from bloomery.tasks.scaffolding.source_options.media_options import (
    ANY_TARGET,
    MediaTarget,
    infer_audio_options,
    infer_image_options,
)

_NUM_LOOKED_UP = 20  # names by which a folder is nearest
_MIN_SHARE_FOUND = 0.5
_MIN_SHARE_INSIDE = 0.9  # of names, so that the folder or server of most is that of all
_MAX_HEADS = 1_000  # files whose sizes or rates decide on the options
_MAX_REMOTE = 200  # files of a server that are read for a draft
_MAX_FOLDERS, _MAX_DEPTH = 200, 2  # below the table's folder, that are searched
_BATCH = 256


class _Decoded(NamedTuple):
    """The lengths of the arrays of the files that can be decoded, and the names of the others with reasons."""

    lengths: Counter[int]
    failures: dict[str, str]
    num_tried: int


def find_file_columns(
    profile: SourceProfile,
    data: DataSource,
    scratch: Path,
    names: dict[str, str],
    roles: Collection[str | None],
    target: MediaTarget = ANY_TARGET,
) -> tuple[SourceProfile, InferredNumbers]:
    """Returns the profile with pixels and samples in place of names of files, and the option `media` that reads them.

    A column stays as it is, with the reason, where most of its files are not found beside the table.

    Args:
        names: the contract's names of the source's columns.
        roles: names of label and key, which are no files.
        target: what the network reads of files.
    """
    skipped = {name for role in roles if role is not None for name in matching_names(role, list(names))}
    is_of_files = data.kind in ("images", "audio", "text") or data.unit == "file"  # whose column `path` is no input
    media, notes, columns = {}, [], []
    for column in profile.columns:
        if not column.names_files or column.name in skipped or is_of_files:
            columns.append(column)
            continue
        column = _with_markers(column, scratch)
        texts = _distinct_texts(scratch, column)
        try:
            named_files = _find_files(column, texts, data)
            files, note = _infer_decoding(_with_folder(named_files, texts, data), texts, data, target)
            decoded = _decode(files, texts)
        except (MediaUnreadable, DataMissing, EngineMissing) as failure:
            problem = str(failure) if isinstance(failure, MediaUnreadable) else failure.found
            columns.append(column.model_copy(update={"file_problem": problem}))
            continue
        media[names[column.name]] = files.options
        notes.append(f"{names[column.name]}: its files are in {_describe_folder(files.options, data)}; {note}")
        columns.append(_to_array(column, files.options, decoded, scratch))
    if not media:
        return profile.model_copy(update={"columns": tuple(columns)}), InferredNumbers({}, {})
    options = InferredNumbers({"media": media}, {"media": "; ".join(notes)})
    return profile.model_copy(update={"columns": tuple(columns)}), options


def _distinct_texts(scratch: Path, column: ColumnProfile) -> list[str]:
    distinct: dict[str, None] = {}
    for batch in read_batches(scratch / ROWS_FILE, [column.name]):
        distinct.update((text, None) for text in pc.unique(batch.column(0)).to_pylist() if text and text.strip())
    return [text for text in distinct if text not in column.missing]


def _with_markers(column: ColumnProfile, scratch: Path) -> ColumnProfile:
    """Returns the column with all usual texts for a missing value as such: none of them is the name of a file."""
    counts: Counter[str] = Counter()
    for batch in read_batches(scratch / ROWS_FILE, [column.name]):
        texts = batch.column(0)
        marked = texts.filter(pc.is_in(texts, pa.array([text for text in MARKERS if text not in column.missing])))
        counts.update(marked.to_pylist())
    missing = tuple(sorted({*column.missing, *counts}))
    return column.model_copy(update={"missing": missing, "num_missing": column.num_missing + counts.total()})


def _find_files(column: ColumnProfile, texts: Sequence[str], data: DataSource) -> ColumnFiles:
    """Returns the files of the column, in the folder in which most of the names exist.

    Raises:
        MediaUnreadable: there is no such folder, or files are of another kind.
    """
    kinds = Counter(PurePosixPath(text.lower()).suffix for text in texts)
    is_image = sum(kinds[suffix] for suffix in SUFFIXES["images"]) > len(texts) / 2
    if not is_image and sum(kinds[suffix] for suffix in SUFFIXES["audio"]) <= len(texts) / 2:
        raise MediaUnreadable(f"{', '.join(sorted(kinds))} is not read; convert recordings to .wav")
    minimal = FileColumn(kind="image", mode="L") if is_image else FileColumn(kind="audio", sample_rate=1)
    if len(texts) == 1:
        raise MediaUnreadable(f"all rows name one file, {texts[0]}")
    sample = _spread(_names_in_one_place(texts) or texts, _NUM_LOOKED_UP)
    best: tuple[float, ColumnFiles | None, str] = (0.0, None, "")
    for options in _candidates(minimal, sample, data):
        files = ColumnFiles(column.name, options, data)
        results = map_files(files, sample, files.identify)
        reasons = [f"{name} ({result})" for name, result in results if isinstance(result, MediaUnreadable)]
        share = 1 - len(reasons) / len(sample)
        if best[1] is None or share > best[0]:
            best = (share, files, reasons[0] if reasons else "")
        if share == 1:
            break
    share, nearest, reason = best
    if nearest is None or share < _MIN_SHARE_FOUND:
        where = folder_of(data, minimal) or "no folder"
        raise MediaUnreadable(
            f"{1 - share:.0%} of them are not found in {where} or below it, such as {reason or sample[0]}"
        )
    return nearest


def _names_in_one_place(texts: Sequence[str]) -> list[str]:
    """Returns the relative names, or the URLs of one server, if nearly all are such; else none."""
    places = Counter(map(_place_of, texts))
    place, num_names = places.most_common(1)[0]
    return [text for text in texts if _place_of(text) == place] if num_names >= _MIN_SHARE_INSIDE * len(texts) else []


def _place_of(text: str) -> str:
    """Returns the server of a URL, empty for a relative name."""
    name = text.strip()
    return "/".join(name.split("/")[:3]) if name.startswith(URLS) else ""


def _with_folder(files: ColumnFiles, texts: Sequence[str], data: DataSource) -> ColumnFiles:
    """Returns the files in the one folder or at the one server that nearly all names are in.

    A recipe without a folder opens any URL. Names of files in several places keep their files.
    """
    names = _names_in_one_place(texts)
    if files.options.folder is not None or not names:
        return files
    folder: str | None = _place_of(names[0]) or files.folder
    if names[0].strip().startswith(REMOTE):
        folder = leading_folders([name.strip() for name in names]).rstrip("/")
    return ColumnFiles(files.column, files.options.model_copy(update={"folder": folder}), data)


def _describe_folder(options: FileColumn, data: DataSource) -> str:
    base = folder_of(data, options.model_copy(update={"folder": None}))
    if options.folder is None:
        return "several places, and each URL is opened"
    if base is None or options.folder.startswith(URLS):
        return options.folder
    return "the table's folder" if options.folder == base else os.path.relpath(options.folder, base)


def _candidates(minimal: FileColumn, sample: Sequence[str], data: DataSource) -> Iterator[FileColumn]:
    """Yields where the names may start: first the table's folder, then folders below it, with and without theirs."""
    base = folder_of(data, minimal)
    if base is None and not any(text.startswith(URLS) for text in sample):
        return
    yield minimal
    if base is None or any(text.startswith(URLS) for text in sample):
        return
    prefix = ""
    prefixes: list[str | None] = [None]
    for part in leading_folders(sample).split("/")[:-1]:
        prefix += f"{part}/"
        prefixes.append(prefix)
    folders: list[str | None] = [None, *_folders_below(base)]
    for folder in folders:
        for start in prefixes:
            if (folder, start) != (None, None):
                yield minimal.model_copy(update={"folder": folder, "prefix": start})


def _folders_below(base: str) -> list[str]:
    """Returns the folders in a local folder or zip, the nearest first."""
    if source_scheme(base) is not None:
        return []
    if base.lower().endswith(".zip"):
        with zipfile.ZipFile(base) as archive:
            parents = {str(PurePosixPath(name).parent) for name in archive.namelist()}
        return [f"{base}/{parent}" for parent in sorted(parents) if parent != "."][:_MAX_FOLDERS]
    folders: list[str] = []
    level = [base]
    for _ in range(_MAX_DEPTH):
        level = [
            entry.path
            for folder in level
            for entry in sorted(os.scandir(folder), key=lambda item: item.name)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "_"))
        ][:_MAX_FOLDERS]
        folders += level
    return folders[:_MAX_FOLDERS]


def _infer_decoding(
    files: ColumnFiles, texts: Sequence[str], data: DataSource, target: MediaTarget
) -> tuple[ColumnFiles, str]:
    """Returns the files with the options that decode them, and the reasons for these."""
    sample = _spread(texts, min(_MAX_HEADS, _max_files(files, texts)))

    def contents() -> Iterator[MediaFile]:
        for start in range(0, len(sample), _BATCH):
            for name, content in map_files(files, sample[start : start + _BATCH], files.read):
                if not isinstance(content, MediaUnreadable):
                    yield MediaFile(name, content)

    is_image = files.options.kind == "image"
    if is_image:
        inferred = infer_image_options(contents(), files.column, target)
    else:
        inferred = infer_audio_options(contents(), target)
    options = dict(inferred.options)
    if is_image:
        options["size"] = tuple(options.get("size", inferred.array_shape[1:]))
    elif "sample_rate" not in options:
        options["sample_rate"] = files.options.sample_rate
    decoding = files.options.model_copy(update=options)
    notes = [note for name, note in inferred.notes.items() if name != "resample"]
    return ColumnFiles(files.column, decoding, data), "; ".join(notes)


def _decode(files: ColumnFiles, texts: Sequence[str]) -> _Decoded:
    """Decodes all files; of those of a server, some. Raises MediaUnreadable if none can be decoded."""
    lengths: Counter[int] = Counter()
    failures = {}
    sample = _spread(texts, _max_files(files, texts))
    for start in range(0, len(sample), _BATCH):
        for name, size in map_files(files, sample[start : start + _BATCH], lambda name: files.decode(name).size):
            if isinstance(size, MediaUnreadable):
                failures[name] = str(size)
            else:
                lengths[size] += 1
    if not lengths:
        name, reason = next(iter(failures.items()))
        raise MediaUnreadable(f"none can be decoded, such as {name} ({reason})")
    return _Decoded(lengths, failures, len(sample))


def _max_files(files: ColumnFiles, texts: Sequence[str]) -> int:
    is_remote = (files.folder or "").startswith(URLS) or texts[0].startswith(URLS)
    return min(len(texts), _MAX_REMOTE) if is_remote else len(texts)


def _spread(texts: Sequence[str], num: int) -> list[str]:
    """Returns so many texts from all over the column."""
    return [texts[math.floor(index * len(texts) / num)] for index in range(num)] if num < len(texts) else [*texts]


def _to_array(column: ColumnProfile, options: FileColumn, decoded: _Decoded, scratch: Path) -> ColumnProfile:
    """Returns the profile of the arrays that the files become; rows of files that do not open are invalid."""
    num_invalid = 0
    failed = pa.array(list(decoded.failures), pa.string())
    for batch in read_batches(scratch / ROWS_FILE, [column.name]):
        num_invalid += pc.is_in(batch.column(0), failed).true_count
    is_image = options.kind == "image"
    update: dict[str, Any] = {
        "logical_type": "array",
        "element_type": "integer" if is_image else "number",
        "physical_type": "uint8" if is_image else "float32",
        "minimum": 0 if is_image else -1.0,
        "maximum": 255 if is_image else 1.0,
        "min_length": min(decoded.lengths),
        "max_length": max(decoded.lengths),
        "length_counts": tuple(sorted(decoded.lengths.items())),
        "num_invalid": num_invalid,
        "invalid_examples": tuple(list(decoded.failures)[:3]),
        "value_counts": None,
        "is_unique": False,
        "names_files": False,
        "media": options,
    }
    return column.model_copy(update=update)
