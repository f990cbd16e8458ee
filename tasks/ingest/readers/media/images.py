"""Images in folders or in a zip, decoded by Pillow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.models.media.config import ImageDecoding, MediaUnreadable
from bloomery.models.media.images import decode_image
from bloomery.models.media.source_options import image_decoding
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.ingest.option_names import option_names, place_of_options
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.media.media_files import MediaFile, path_fields, path_values, read_media

_BATCH_FILES = 64
_MAX_UNREADABLE_FILES = 16  # at once; they may be followed by large images
_ROW_GROUP_BYTES = 64 << 20


class _Image(NamedTuple):
    """The columns of an image's path, and its pixels as uint8 of shape (channels, height, width)."""

    values: dict[str, str | None]
    pixels: np.ndarray


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns a row per image: `path`, `label` (its folder) or the groups of `path_pattern`, and `image`.

    `image` is a list of uint8 in the recipe's mode, channel after channel, row after row, as `decode_image` returns it.
    Files that it refuses are malformed.

    Raises:
        DataMissing: there are no images, or they have several sizes and the recipe has no `size`.
    """
    num_malformed = malformed.num_lines
    images = _decode_all(data, origin, malformed)
    first = next(images, None)
    if first is None:
        raise DataMissing(
            f"there are no images in {origin.source}{malformed.describe_last(before=num_malformed)}",
            required="images of 8 bits per colour in files that Pillow reads, such as PNG and JPEG",
            where=place_of_options(),
            remedy="correct the path, or convert the files",
        )
    schema = pa.schema([*path_fields(data), ("image", pa.list_(pa.uint8()))])
    row_group_size = max(1, min(ROW_GROUP_SIZE, _ROW_GROUP_BYTES // first.pixels.size))
    return RowStream(schema, _to_batches(schema, first, images), row_group_size)


def _to_batches(schema: pa.Schema, first: _Image, later_images: Iterator[_Image]) -> Iterator[pa.RecordBatch]:
    images = [first]
    while images:
        for image in images:
            _require_equal_sizes(first, image)
        pixels = pa.FixedSizeListArray.from_arrays(
            pa.array(np.concatenate([image.pixels.reshape(-1) for image in images])), first.pixels.size
        ).cast(schema.field("image").type)
        texts = [pa.array([image.values[name] for image in images], pa.string()) for name in schema.names[:-1]]
        yield pa.RecordBatch.from_arrays([*texts, pixels], schema=schema)
        images = list(islice(later_images, _batch_length(first.pixels)))


def _require_equal_sizes(first: _Image, image: _Image) -> None:
    if image.pixels.shape != first.pixels.shape:
        sizes = " and ".join(f"{shape[1]} x {shape[2]}" for shape in (first.pixels.shape, image.pixels.shape))
        raise DataMissing(
            f"images have the sizes {sizes} (height x width)",
            required="one size, if the recipe has no `size`",
            where=f"{first.values['path']} and {image.values['path']}",
            remedy=f"set {option_names('size')} to a height and a width: all images are resized to it",
        )


def _decode_all(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> Iterator[_Image]:
    files, decoding = read_media(data, origin), image_decoding(data)
    length = 1  # since images may be large
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(files, length)):
            length = min(2 * length, _MAX_UNREADABLE_FILES)
            results = pool.map(lambda file: _decode(file, decoding), batch)
            for file, pixels in zip(batch, results, strict=True):
                values = path_values(data, file.path)
                if isinstance(pixels, str):
                    malformed.add(file.path, None, "", pixels)
                elif values is None:
                    malformed.add(file.path, None, "", f"a path that does not match {data.path_pattern!r}")
                else:
                    length = _batch_length(pixels)
                    yield _Image(values, pixels)


def _batch_length(pixels: np.ndarray) -> int:
    """Returns how many images like this one are in memory at the same time."""
    return max(1, min(_BATCH_FILES, _ROW_GROUP_BYTES // pixels.size))


def _decode(file: MediaFile, decoding: ImageDecoding) -> np.ndarray | str:
    """Returns uint8 of shape (channels, height, width), or why there are no pixels."""
    try:
        return decode_image(file.content, decoding)
    except MediaUnreadable as failure:
        return str(failure)
