"""Images, decoded by Pillow to pixels of 8 bits, as a viewer shows them.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np

from bloomery.models.media.config import ImageDecoding, MediaBudget, MediaTooLarge, MediaUnreadable

if TYPE_CHECKING:
    from PIL import Image

# Pillow reads other formats by programs such as Ghostscript, which no file from outside may start.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNED_SIDEWAYS = range(5, 9)  # values of the tag that exchange height and width


def decode_image(content: bytes, decoding: ImageDecoding, budget: MediaBudget | None = None) -> np.ndarray:
    """Returns uint8 of shape (C, H, W), turned as the EXIF orientation says, with transparent parts in white.

    Colours of 16 bits are reduced to 8, as PNG defines it. Grey images of 16 bits are refused, since many use only a
    part of the range. CMYK becomes RGB without a colour profile.

    Raises:
        MediaTooLarge: the image, or what it is resized to, has more pixels than the budget. None of them is decoded.
        MediaUnreadable: the file is no image, is truncated, or has several frames or pixels that 8 bits cannot hold.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if budget is not None:
                num_pixels = max(image.width * image.height, math.prod(decoding.size or (1,)))
                budget.take(num_pixels, f"{image.height:,} x {image.width:,} pixels")
            _require_single_image(image)
            converted_image = _without_transparency(_turn_upright(image)).convert(decoding.mode)
            if decoding.size is not None:
                height, width = decoding.size
                converted_image = converted_image.resize((width, height), Image.Resampling.BILINEAR)
    except MediaUnreadable:
        raise
    except Image.DecompressionBombError:
        raise MediaTooLarge(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from None
    except Exception as failure:  # Pillow's formats raise errors of many kinds
        raise MediaUnreadable(f"no image: {_reason(failure)}") from failure
    pixels = np.asarray(converted_image, np.uint8)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns height and width of an image as it is decoded, from its header. Pillow turns TIFF files itself."""
    is_sideways = image.format != "TIFF" and read_orientation(image) in _TURNED_SIDEWAYS
    return (image.width, image.height) if is_sideways else (image.height, image.width)


def read_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation: 1 for upright, also where there is none or the EXIF data is damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the pixels may be intact
        return 1
    return orientation if orientation in range(1, 9) else 1


def _require_single_image(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise MediaUnreadable(f"pixels of mode {image.mode}, which do not fit into 8 bits; convert the file to 8 bits")
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format != "MPO":  # the other pictures of an MPO file are previews and depths
        raise MediaUnreadable(f"{num_frames} frames or pages, where one image is required")


def _turn_upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    image.load()  # turns a TIFF file
    return image if read_orientation(image) == 1 else ImageOps.exif_transpose(image)


def _without_transparency(image: Image.Image) -> Image.Image:
    """Lays an image with transparent pixels on white, as viewers do. Their hidden colours are arbitrary."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    rgba_image = image.convert("RGBA")
    background = Image.new("RGBA", rgba_image.size, "white")
    return Image.alpha_composite(background, rgba_image)


def _reason(failure: Exception) -> str:
    return str(failure) if "BytesIO" not in str(failure) else "no format that Pillow knows"
