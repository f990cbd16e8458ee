"""Data sets of Hugging Face: folders of Arrow or Parquet files, whose schemas have the features of the columns.

`datasets.save_to_disk` writes Arrow files, and the hub stores Parquet files. The package `datasets` is not needed.
Source: https://huggingface.co/docs/datasets/about_arrow
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.models.media.config import ImageDecoding, MediaUnreadable
from bloomery.models.media.images import decode_image
from bloomery.models.media.recordings import decode_recording
from bloomery.models.media.source_options import audio_decoding
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation, is_hidden
from bloomery.tasks.ingest.option_names import option_names
from bloomery.tasks.ingest.readers import columnar, files
from bloomery.tasks.ingest.readers.base import (
    DECLARED_VALUES,
    MalformedWriter,
    RowStream,
    canonical_schema,
    conform_batch,
)
from bloomery.tasks.ingest.readers.media.media_files import MediaFile

FEATURES = b"huggingface"  # of a schema's metadata
_ROW_GROUP_SIZE = 1_024  # of rows with images or recordings
_BATCH_ROWS = 256
_SPLITS = re.compile(r"(?:^|[/_-])(train|training|validation|valid|val|dev|test)(?=[-._/]|$)")
_SHARD = re.compile(r"(?:^|[/_-])([\w.]+)-[0-9]{5}-of-[0-9]{5}")  # a file of a split with another name
SAMPLE_RATE = "sample_rate"  # the column beside a column of recordings

Media: TypeAlias = Literal["image", "audio"]


class DatasetSplit(NamedTuple):
    """A split by its name in the data set: the folder of its files, and the pattern of their paths in it."""

    name: str
    folder: str
    files: str | None = None


class _Column(NamedTuple):
    """A column as the files have it: its names of classes, or the kind of its media files."""

    field: pa.Field
    class_names: tuple[str, ...] = ()
    media: Media | None = None


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows with the names of classes, and with decoded images and recordings.

    Images become lists of uint8, channel after channel, recordings lists of float32, with their rate in a column.
    Rows with an image or recording that cannot be decoded are malformed; their number in the file, from 1, is the line.

    Raises:
        DataMissing: there is no file, a file is incomplete, or images have several sizes and there is no `size`.
    """
    rows = files.read_files(data, origin, malformed, _read_schema, _BatchReader().read)
    has_media = any(pa.types.is_list(field.type) for field in rows.schema)
    return rows._replace(row_group_size=_ROW_GROUP_SIZE) if has_media else rows


def has_features(path: Path) -> bool:
    """Whether a Parquet or Arrow file has features that its own types do not show: classes, images or recordings."""
    try:
        schema = _read_raw_schema(locations.find_files(DataSource(source=str(path)), str(path))[0])
    except (pa.ArrowException, OSError):
        return False
    return any(column.class_names or column.media for column in _columns(schema))


def is_dataset(folder: Path) -> bool:
    """Whether a folder is one that `save_to_disk` has written, or has Parquet files from the hub."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return True
    paths = sorted(path for path in folder.rglob("*.parquet") if not is_hidden(str(path.relative_to(folder))))
    return bool(paths) and has_features(paths[0])


def list_splits(source: str) -> list[DatasetSplit]:
    """Returns the splits of a data set; none where its files name none."""
    folder = Path(source)
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        return [DatasetSplit(str(name), str(folder / name)) for name in json.loads(listing.read_text())["splits"]]
    if not folder.is_dir() or (folder / "state.json").is_file():
        return []
    data = DataSource(source=source, format="huggingface")
    relatives = [file.relative for file in locations.find_files(data, source)]
    names = dict.fromkeys(match[1] for relative in relatives if (match := _SPLITS.search(relative)))
    if names:
        others = (_SHARD.search(relative) for relative in relatives if _SPLITS.search(relative) is None)
        names |= dict.fromkeys(match[1] for match in others if match is not None)
    return [DatasetSplit(name, source, rf"(^|[/_-]){re.escape(name)}(?=[-._/])") for name in names]


def has_labels(source: DataSource, label: str) -> bool:
    """Whether a row has a value in the column `label`, or there is no such column. A class of -1 is no value."""
    for location in locations.find_row_files(source, source.source_files[0]):
        column = next((item for item in _columns(_read_raw_schema(location)) if item.field.name == label), None)
        if column is None:
            return True
        for batch in _read_raw_batches(location, [label]):
            known = pc.greater_equal(batch[label], 0) if column.class_names else batch[label].is_valid()
            if known.true_count:
                return True
    return False


def media_columns(source: DataSource) -> dict[str, Media]:
    """Returns the columns of images and recordings, by name."""
    location = locations.find_row_files(source, source.source_files[0])[0]
    columns = _columns(_read_raw_schema(location))
    return {column.field.name: column.media for column in columns if column.media is not None}


def read_media_column(source: DataSource, name: str) -> Iterator[MediaFile]:
    """Yields the files in a column of images or recordings; none for null."""
    for location in locations.find_row_files(source, source.source_files[0]):
        for batch in _read_raw_batches(location, [name]):
            for value in batch[name]:
                if value.is_valid and value["bytes"].is_valid:
                    yield MediaFile(str(value["path"].as_py() or ""), value["bytes"].as_py())


def _read_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    fields = []
    columns = _columns(_read_raw_schema(location))
    rate_names = _name_rates(columns)
    for column in columns:
        field = column.field
        if column.class_names:
            fields.append(pa.field(field.name, pa.string(), metadata={DECLARED_VALUES: json.dumps(column.class_names)}))
        elif column.media == "image":
            fields.append(pa.field(field.name, pa.list_(pa.uint8())))
        elif column.media == "audio":
            fields += [pa.field(field.name, pa.list_(pa.float32())), pa.field(rate_names[field.name], pa.int64())]
        else:
            fields.append(canonical_schema(pa.schema([field])).field(0))
    return pa.schema(fields)


def _name_rates(columns: Sequence[_Column]) -> dict[str, str]:
    """Returns for each column of recordings the name of that with their rates: `sample_rate`, where it is free.

    Further ones begin with the name of their column.
    """
    used = {column.field.name for column in columns}
    rate_names: dict[str, str] = {}
    for column in columns:
        if column.media == "audio":
            name = SAMPLE_RATE
            while name in used:
                name = f"{column.field.name}_{name}"
            rate_names[column.field.name] = name
            used.add(name)
    return rate_names


def _columns(schema: pa.Schema) -> list[_Column]:
    metadata = json.loads((schema.metadata or {}).get(FEATURES, b"{}"))
    features = metadata.get("info", {}).get("features", {})
    return [_to_column(field, features.get(field.name)) for field in schema]


def _to_column(field: pa.Field, feature: Any) -> _Column:
    kind = feature.get("_type") if isinstance(feature, dict) else None
    if kind == "ClassLabel" and feature.get("names") and pa.types.is_integer(field.type):
        return _Column(field, tuple(map(str, feature["names"])))
    is_file = pa.types.is_struct(field.type) and {item.name for item in field.type} == {"bytes", "path"}
    if is_file and kind in ("Image", "Audio"):
        return _Column(field, media="image" if kind == "Image" else "audio")
    return _Column(field)


def _read_raw_schema(location: FileLocation) -> pa.Schema:
    with location.open_file() as file:
        return columnar.read_raw_schema(file, _file_kind(location))


def _read_raw_batches(location: FileLocation, names: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    with location.open_file() as file:
        for batch in columnar.read_raw_batches(file, _file_kind(location), _BATCH_ROWS, names):
            batches = (batch.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))
            yield from (part.select(names) if names is not None else part for part in batches)


def _file_kind(location: FileLocation) -> str:
    return "parquet" if location.relative.lower().endswith((".parquet", ".pq")) else "arrow"


class _BatchReader:
    """Reads the rows of several files, whose images must have one size."""

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}

    def read(
        self, location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
    ) -> Iterator[pa.RecordBatch]:
        """Yields the rows of one file in the types of `schema`."""
        columns = _columns(_read_raw_schema(location))
        rate_names = _name_rates(columns)
        first_row = 1
        for batch in _read_raw_batches(location):
            decoded: dict[str, list[Any]] = {}
            reasons: dict[int, str] = {}
            for column in columns:
                if column.media is not None:
                    name = column.field.name
                    decoded[name], rates = self._decode(batch[name], column, data, reasons)
                    decoded |= {rate_names[name]: rates} if name in rate_names else {}
            for row, reason in sorted(reasons.items()):
                malformed.add(location.relative, first_row + row, "", reason)
            first_row += batch.num_rows
            yield _to_rows(batch, columns, decoded, schema, [*reasons])

    def _decode(
        self, values: pa.Array, column: _Column, data: DataSource, reasons: dict[int, str]
    ) -> tuple[list[Any], list[int | None]]:
        """Returns the decoded values and their sample rates, with None for each row that is added to `reasons`."""
        name = column.field.name
        contents: list[Any] = [None] * len(values)
        rates: list[int | None] = [None] * len(values)
        for row, content in enumerate(values.field("bytes").to_pylist()):
            try:
                if content is None:
                    raise MediaUnreadable(f"column {name}: no bytes; the file is not stored in the data set")
                if column.media == "audio":
                    contents[row], rates[row] = decode_recording(content, audio_decoding(data))
                else:
                    pixels = decode_image(content, ImageDecoding(mode=data.mode or "RGB", size=data.size))
                    self._require_equal_shapes(name, pixels.shape)
                    contents[row] = pixels.reshape(-1)
            except MediaUnreadable as failure:
                reasons.setdefault(row, str(failure))
        return contents, rates

    def _require_equal_shapes(self, name: str, shape: tuple[int, ...]) -> None:
        first = self._shapes.setdefault(name, shape)
        if shape != first:
            sizes = " and ".join(f"{height} x {width}" for _, height, width in (first, shape))
            raise DataMissing(
                f"images of column {name} have the sizes {sizes} (height x width)",
                required="one size, if none is set",
                where=f"column {name}",
                remedy=f"set {option_names('size')}: all images are resized to it",
            )


def _to_rows(
    batch: pa.RecordBatch, columns: list[_Column], decoded: dict[str, list[Any]], schema: pa.Schema, dropped: list[int]
) -> pa.RecordBatch:
    arrays: dict[str, pa.Array] = {name: pa.array(values, schema.field(name).type) for name, values in decoded.items()}
    for column in columns:
        name = column.field.name
        if column.class_names:
            names = pa.array(column.class_names, pa.string())
            indices = batch[name].cast(pa.int64())
            is_class = pc.and_(pc.greater_equal(indices, 0), pc.less(indices, len(names)))
            arrays[name] = names.take(pc.if_else(is_class, indices, pa.scalar(None, pa.int64())))
        elif name not in arrays:
            typed = pa.schema([schema.field(name)])
            arrays[name] = conform_batch(pa.RecordBatch.from_arrays([batch[name]], names=[name]), typed)[0]
    rows = pa.RecordBatch.from_arrays([arrays[field.name] for field in schema], schema=schema)
    if not dropped:
        return rows
    is_kept = np.ones(batch.num_rows, bool)
    is_kept[dropped] = False
    return rows.filter(pa.array(is_kept))
