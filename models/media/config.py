"""How the files of a media column are decoded: the same for training rows and for requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document

MEDIA_FILE = "media.json"  # in a bento, beside the model


class MediaUnreadable(Exception):
    """A file is no image or recording, or none of the required kind. The message is the reason."""


class MediaTooLarge(MediaUnreadable):
    """A file has more pixels or samples than are allowed."""


class MediaBudget:
    """The pixels or samples that may still be decoded."""

    def __init__(self, limit: int) -> None:
        self._remaining = limit

    def take(self, amount: int, description: str) -> None:
        """Counts `amount`. Raises MediaTooLarge with the description if less remains."""
        if amount > self._remaining:
            raise MediaTooLarge(description)
        self._remaining -= amount


class ImageDecoding(Document):
    """Images become uint8 pixels: grey (mode L) or colour, resized to `size` (height, width) if there is one."""

    kind: Literal["image"] = "image"
    mode: Literal["L", "RGB"]
    size: tuple[int, int] | None = None


class AudioDecoding(Document):
    """Recordings become float32 samples from -1 to 1 at `sample_rate` (Hz), or at their own rate if it is None.

    Recordings of another rate are converted if `resample`, and refused otherwise. Several channels are averaged if
    `mono`, and refused otherwise.
    """

    kind: Literal["audio"] = "audio"
    sample_rate: int | None = None
    resample: bool = False
    mono: bool = False


class MediaColumn(Document):
    """A column that an endpoint takes as files. `shape` is the (channels, height, width) that images must have."""

    column: str
    decoding: Annotated[ImageDecoding | AudioDecoding, Field(discriminator="kind")]
    shape: tuple[int, int, int] | None = None


class _SeveralColumns(Document):
    columns: tuple[MediaColumn, ...]


def write_media_columns(columns: Sequence[MediaColumn]) -> str:
    """Returns the content of MEDIA_FILE; that of one column is the column."""
    document = columns[0] if len(columns) == 1 else _SeveralColumns(columns=tuple(columns))
    return document.model_dump_json(indent=1)


def read_media_columns(text: str) -> tuple[MediaColumn, ...]:
    """Returns the columns of a MEDIA_FILE with this content."""
    content = json.loads(text)
    return _SeveralColumns.model_validate(content if "columns" in content else {"columns": [content]}).columns
