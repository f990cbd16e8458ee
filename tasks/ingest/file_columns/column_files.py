"""The files that a column names: looked up by name, identified by their content, and tried before rows are decoded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.file_column import FileColumn
from bloomery.models.media.config import AudioDecoding, ImageDecoding, MediaUnreadable
from bloomery.models.media.images import decode_image
from bloomery.models.media.recordings import decode_recording
from bloomery.models.media.source_options import column_decoding
from bloomery.tasks.ingest.file_columns.file_names import URLS, cut_name, folder_of, leading_folders, relative_name
from bloomery.tasks.ingest.file_columns.file_stores import FileStore, UrlFiles, open_folder
from bloomery.tasks.ingest.option_names import place_of_options
from bloomery.tasks.ingest.readers.base import RowStream

_NUM_TRIED = 8  # files of a column that are opened before rows are read
_NUM_SHOWN = 3
_REMOTE_THREADS = 16  # they wait for the network
_Source = TypeVar("_Source")
_Result = TypeVar("_Result")


class ColumnFiles:
    """The files of one column.

    Raises:
        DataMissing: there is no such folder.
    """

    def __init__(self, column: str, options: FileColumn, data: DataSource) -> None:
        self.column, self.options, self._data = column, options, data
        self.decoding: ImageDecoding | AudioDecoding = column_decoding(options)
        self.folder = folder_of(data, options)
        self._store: FileStore | None = None if self.folder is None else open_folder(self.folder)
        self._urls: FileStore | None = UrlFiles() if options.folder is None else None

    @property
    def num_threads(self) -> int:
        """How many files are read at the same time."""
        is_remote = self._urls is not None or (self.folder or "").startswith(URLS)
        return _REMOTE_THREADS if is_remote else os.cpu_count() or 1

    def identify(self, name: str, *, by_content: bool = True) -> list[object]:
        """Returns what changes when the file's content does, as its store does. Raises MediaUnreadable."""
        store, path = self._locate(name)
        return store.identify(path, by_content=by_content)

    def decode(self, source: str | bytes) -> np.ndarray:
        """Returns pixels (C, H, W) or samples (N,) of a file with this name, or with these bytes.

        Raises:
            MediaUnreadable: there is no such file in the folder, or it cannot be decoded.
        """
        content = source if isinstance(source, bytes) else self.read(source)
        if isinstance(self.decoding, ImageDecoding):
            return decode_image(content, self.decoding)
        return decode_recording(content, self.decoding)[0]

    def without_prefix(self, prefix: str) -> ColumnFiles:
        """Returns the files of the same names without this text at their start."""
        return ColumnFiles(self.column, self.options.model_copy(update={"prefix": prefix}), self._data)

    def read(self, name: str) -> bytes:
        """Returns the bytes of the file. Raises MediaUnreadable."""
        store, path = self._locate(name)
        try:
            return store.read(path)
        except OSError as failure:
            raise MediaUnreadable(failure.strerror or str(failure)) from failure

    def _locate(self, name: str) -> tuple[FileStore, str]:
        cut = cut_name(name, self.options)
        if self._urls is not None and cut.startswith(URLS):
            return self._urls, cut
        if self._store is None or self.folder is None:
            raise MediaUnreadable("a relative name, but the recipe names no `folder`")
        return self._store, relative_name(name, self.folder, self.options)


def open_columns(rows: RowStream, data: DataSource) -> list[ColumnFiles]:
    """Returns the files of each column of `data.media`.

    Raises:
        RecipeInvalid: there is no such column, or it holds neither texts nor bytes.
        DataMissing: there is no such folder.
    """
    columns = []
    for name, options in (data.media or {}).items():
        kind = rows.schema.field(name).type if name in rows.schema.names else None
        if kind is None or not (pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_null(kind)):
            problem = f"there is no column {name}" if kind is None else f"column {name} has {kind}"
            raise RecipeInvalid(
                f"{problem}, where files are named",
                required=f"a column with names of files: {', '.join(rows.schema.names)}",
                where=f"{place_of_options()}, media",
                remedy="correct the name of the column in `media`",
            )
        columns.append(ColumnFiles(name, options, data))
    return columns


def identify_columns(rows: RowStream, data: DataSource, *, by_content: bool) -> list[object]:
    """Returns for each column of `data.media` what changes when one of its files does, appears or disappears.

    Args:
        by_content: whether files on this machine are read; else their sizes and times count, and none is decoded.

    Raises:
        DataMissing: none of the files of a column exists, or none that is tried can be decoded.
    """
    columns = [
        column for column in open_columns(rows, data) if pa.types.is_string(rows.schema.field(column.column).type)
    ]
    names: dict[str, dict[str, None]] = {column.column: {} for column in columns}
    for batch in rows.batches if columns else ():
        for column in columns:
            distinct = pc.unique(batch[column.column]).to_pylist()
            names[column.column].update((name, None) for name in distinct if name and name.strip())
    return [
        [column.column, _identify(column, sorted(names[column.column]), by_content=by_content)] for column in columns
    ]


def _identify(column: ColumnFiles, names: Sequence[str], *, by_content: bool) -> str:
    digest, existing, reasons = sha256(), [], {}
    for name, result in map_files(column, names, partial(column.identify, by_content=by_content)):
        if isinstance(result, MediaUnreadable):
            reasons[name] = str(result)
        else:
            existing.append(name)
        digest.update(json.dumps([name, str(result) if isinstance(result, MediaUnreadable) else result]).encode())
    if not existing:
        raise _dead_error(column, names, reasons)
    if by_content:
        _require_decodable(column, existing)
    return digest.hexdigest()


def _require_decodable(column: ColumnFiles, names: Sequence[str]) -> None:
    """Raises DataMissing if none of a few of the files can be decoded."""
    tried = names[:: max(1, len(names) // _NUM_TRIED)][:_NUM_TRIED]
    results = map_files(column, tried, column.decode)
    failures = {name: str(result) for name, result in results if isinstance(result, MediaUnreadable)}
    if len(failures) == len(tried):
        raise DataMissing(
            f"none of {len(tried)} files that column {column.column} names can be decoded: {_list_reasons(failures)}",
            required=f"files of kind {column.options.kind}, decoded as its options say",
            where=f"{place_of_options()}, media: {column.column}",
            remedy="correct `kind` or the options of decoding, or convert the files",
        )


def map_files(
    column: ColumnFiles, sources: Sequence[_Source], change: Callable[[_Source], _Result]
) -> Iterator[tuple[_Source, _Result | MediaUnreadable]]:
    """Yields each name or content with the result of `change`, or with why there is none, in their order."""

    def attempt(source: _Source) -> _Result | MediaUnreadable:
        try:
            return change(source)
        except MediaUnreadable as failure:
            return failure

    with ThreadPoolExecutor(column.num_threads) as pool:
        yield from zip(sources, pool.map(attempt, sources), strict=True)


def _dead_error(column: ColumnFiles, names: Sequence[str], reasons: dict[str, str]) -> DataMissing:
    folder = column.folder or "no folder"
    problem = f"none of the {len(names):,} files that column {column.column} names exists in {folder}"
    return DataMissing(
        f"{problem}: {_list_reasons(reasons)}" if names else f"column {column.column} names no files",
        required="names of files in the folder",
        where=f"{place_of_options()}, media: {column.column}",
        remedy=_suggest(column, names),
    )


def _suggest(column: ColumnFiles, names: Sequence[str]) -> str:
    """Returns the remedy; where names exist without some of their leading folders, the `prefix` that removes these."""
    common = leading_folders(names[:1_000])
    prefix = ""
    for folder in common.split("/")[:-1]:
        prefix += f"{folder}/"
        shortened = column.without_prefix(prefix)
        if not any(
            isinstance(result, MediaUnreadable) for _, result in map_files(shortened, names[:1], shortened.identify)
        ):
            return f"set `prefix: {prefix}`, which is left out of the names then"
    return "set `folder` to the folder that the names start at, or `prefix` and `suffix` to what names have or lack"


def _list_reasons(reasons: dict[str, str]) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(reasons.items())[:_NUM_SHOWN]]
    return ", ".join([*shown, *(["…"] if len(reasons) > len(shown) else [])])
