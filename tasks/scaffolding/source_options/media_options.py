"""Infers how images and recordings are read: from the heads of images, and from all recordings."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.models.media.config import MediaUnreadable
from bloomery.models.media.images import read_orientation, upright_size
from bloomery.models.media.recordings import read_wav
from bloomery.tasks.ingest.readers.media.media_files import MediaFile, read_media

_MAX_SIDE = 64  # pixels; larger images are resized when they are read
_UPRIGHT = 1  # the EXIF orientation
_GREY_MODES = ("1", "L", "LA")


class MediaOptions(NamedTuple):
    """The options of `data`, and the reasons for them. `array_shape` is that of an image."""

    options: dict[str, Any]
    notes: dict[str, str]
    array_shape: tuple[int, ...] = ()


class MediaTarget(NamedTuple):
    """What a network reads: the longer side of images, at most, and the rate of recordings, if it has one."""

    max_side: int = _MAX_SIDE
    sample_rate: int | None = None


ANY_TARGET = MediaTarget()


def infer_image_options(files: Iterable[MediaFile], source: str, target: MediaTarget = ANY_TARGET) -> MediaOptions:
    """Returns the mode and, where images are large or differ in size, the size that most of them have.

    Raises:
        DataMissing: there are no images.
    """
    modes: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    num_turned = 0
    for mode, size, orientation in _image_heads(files):
        modes["L" if mode in _GREY_MODES or mode.startswith(("I", "F")) else "RGB"] += 1
        sizes[size] += 1
        num_turned += orientation != _UPRIGHT
    if not sizes:
        raise DataMissing(
            f"there are no images in {source}",
            required="files that Pillow reads, such as PNG and JPEG",
            where="--data",
            remedy="correct the path",
        )
    mode, mode_note = ("RGB", f"{modes['RGB']:,} of {modes.total():,} images have colours")
    if not modes["RGB"]:
        mode, mode_note = "L", "no image has colours"
    if num_turned:
        mode_note += f"; {num_turned:,} are turned as their EXIF orientation says"
    options, notes = {"mode": mode}, {"mode": mode_note}
    (height, width), num_equal = min(sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    num_channels, longer_side = (1 if mode == "L" else 3), max(height, width)
    if len(sizes) == 1 and longer_side <= target.max_side:
        return MediaOptions(options, notes, (num_channels, height, width))
    ratio = min(target.max_side / longer_side, 1.0)
    notes["size"] = f"{num_equal:,} of {sizes.total():,} images have {height} x {width} pixels; all are resized"
    height, width = max(round(height * ratio), 1), max(round(width * ratio), 1)
    return MediaOptions({**options, "size": [height, width]}, notes, (num_channels, height, width))


def _image_heads(files: Iterable[MediaFile]) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yields mode, height and width, and EXIF orientation of each image."""
    from PIL import Image

    for file in files:
        try:
            with Image.open(io.BytesIO(file.content)) as image:
                yield image.mode, upright_size(image), read_orientation(image)
        except Exception:  # the reader lists files that are no images as malformed
            continue


def infer_audio_options(files: Iterable[MediaFile], target: MediaTarget = ANY_TARGET) -> MediaOptions:
    """Returns the sample rate that most recordings have, to which others are converted; and channels are averaged.

    A network that reads one rate decides on it.
    """
    rates: Counter[int] = Counter()
    num_multichannel = 0
    for file in files:
        try:
            rate, samples = read_wav(file.content)
        except MediaUnreadable:  # the reader lists such files as malformed
            continue
        rates[rate] += 1
        num_multichannel += samples.ndim == 2 and samples.shape[1] > 1
    options: dict[str, Any] = {"mono": True}
    notes = {"mono": "no recording has several channels; those of others are averaged"}
    if num_multichannel:
        notes = {
            "mono": f"{num_multichannel:,} of {rates.total():,} recordings have several channels, which are averaged"
        }
    if not rates:
        return MediaOptions(options, {})
    rate, num_equal = min(rates.items(), key=lambda pair: (-pair[1], pair[0]))
    if target.sample_rate is not None:
        rate, num_equal = target.sample_rate, rates[target.sample_rate]
    others = ", ".join(f"{num:,} with {other} Hz" for other, num in sorted(rates.items()) if other != rate)
    notes["sample_rate"] = f"{num_equal:,} of {rates.total():,} recordings have it" + (f"; {others}" if others else "")
    notes["resample"] = "recordings of other rates are converted, also at the endpoint"
    return MediaOptions({"sample_rate": rate, "resample": True, **options}, notes)


def media_files(paths: Sequence[str], kind: Literal["images", "audio"]) -> Iterator[MediaFile]:
    """Yields the images or recordings at all paths."""
    for path in paths:
        data = DataSource(source=path, format=kind, mode="L" if kind == "images" else None)
        yield from read_media(data, data.source_files[0])
