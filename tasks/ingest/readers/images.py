"""Folders of images, read by Pillow."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.media import MediaFile, path_fields, path_values, read_media

_BATCH_FILES = 64
_GROUP_BYTES = 64 << 20


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """A row per image: `path`, `label` (its folder's name) or what `path_pattern` tells, and `image`.

    `image` is a list of uint8 in the stated mode, channel after channel, row after row. What is no image is put aside.

    Raises:
        DataMissing: there is no image at all, or no size is stated and the images have more than one.
    """
    found = _decoded(data, origin, malformed)
    first = next(found, None)
    if first is None:
        raise DataMissing(
            f"there is no image in {origin.source}",
            required="files that Pillow reads, such as PNG and JPEG",
            where="the recipe's `data`",
            remedy="mend the path",
        )
    schema = pa.schema([*path_fields(data), ("image", pa.list_(pa.uint8()))])
    group_rows = max(1, min(ROW_GROUP_SIZE, _GROUP_BYTES // first[1].size))
    return RowStream(schema, _batches(data, schema, first, found), group_rows)


_Image = tuple[dict[str, str | None], np.ndarray]


def _batches(data: Data, schema: pa.Schema, first: _Image, rest: Iterator[_Image]) -> Iterator[pa.RecordBatch]:
    waiting = [first]
    while waiting:
        for given, pixels in waiting:
            if pixels.shape != first[1].shape:
                sizes = " and ".join(f"{shape[1]} x {shape[2]}" for shape in (first[1].shape, pixels.shape))
                raise DataMissing(
                    f"images have sizes {sizes} (height x width)",
                    required="one size, if the recipe states none",
                    where=f"{first[0]['path']} and {given['path']}",
                    remedy="state `size: [height, width]`, to which all images are resized",
                )
        images = pa.FixedSizeListArray.from_arrays(
            pa.array(np.concatenate([pixels.reshape(-1) for _, pixels in waiting])), first[1].size
        ).cast(schema.field("image").type)
        texts = [pa.array([given[name] for given, _ in waiting], pa.string()) for name in schema.names[:-1]]
        yield pa.RecordBatch.from_arrays([*texts, images], schema=schema)
        waiting = list(islice(rest, _BATCH_FILES))


def _decoded(data: Data, origin: Origin, malformed: MalformedWriter) -> Iterator[_Image]:
    found = read_media(data, origin)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(found, _BATCH_FILES)):
            decoded = pool.map(lambda medium: _pixels(medium, data), batch)
            for medium, pixels in zip(batch, decoded, strict=True):
                given = path_values(data, medium.path)
                if isinstance(pixels, str):
                    malformed.add(medium.path, None, "", pixels)
                elif given is None:
                    malformed.add(medium.path, None, "", f"a path that does not fit {data.path_pattern!r}")
                else:
                    yield given, pixels


def _pixels(medium: MediaFile, data: Data) -> np.ndarray | str:
    """uint8 of shape (channels, height, width), or why there are none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(medium.content)) as image:
            if image.mode.startswith(("I", "F")):
                return f"pixels of mode {image.mode}, which do not fit into 8 bits"
            converted = image.convert(data.mode)
            if data.size is not None:
                converted = converted.resize((data.size[1], data.size[0]), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as failure:
        told = str(failure) if "BytesIO" not in str(failure) else "no format that Pillow knows"
        return f"no image: {told}"
    pixels = np.asarray(converted, np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
