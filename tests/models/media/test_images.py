"""Images as a viewer shows them: turned, on white, in 8 bits; or the reason why there are no pixels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloomery.models.media.config import ImageDecoding, MediaBudget, MediaTooLarge, MediaUnreadable
from bloomery.models.media.images import decode_image, upright_size

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 13
RGB, GREY = ImageDecoding(mode="RGB"), ImageDecoding(mode="L")
UPRIGHT = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: np.rot90(PIXELS, 2).transpose(1, 0, 2),
    8: np.rot90(PIXELS),
}


def encode(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(sink, file_format, **options)
    return sink.getvalue()


def decode(content: bytes, decoding: ImageDecoding = RGB) -> np.ndarray:
    """The pixels (H, W, C)."""
    return decode_image(content, decoding).transpose(1, 2, 0)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_image_is_turned_once_as_its_exif_orientation_says(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(PIXELS, file_format, exif=exif, **({"lossless": True} if file_format == "WEBP" else {}))
    np.testing.assert_array_equal(decode(content), UPRIGHT[orientation])
    with Image.open(io.BytesIO(content)) as image:
        assert upright_size(image) == UPRIGHT[orientation].shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_leaves_an_image_as_it_is() -> None:
    content = encode(PIXELS, "JPEG", exif=b"Exif\0\0garbage!!")
    np.testing.assert_array_equal(decode(content), decode(encode(PIXELS, "JPEG")))


def test_transparent_pixels_are_white_whatever_colour_they_hide() -> None:
    alpha = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)
    expected = np.where(alpha[..., None] == 0, 255, PIXELS)
    np.testing.assert_array_equal(decode(encode(np.dstack([PIXELS, alpha]))), expected)
    grey = np.dstack([PIXELS[..., 0], alpha])
    np.testing.assert_array_equal(decode(encode(grey), GREY)[..., 0], np.where(alpha == 0, 255, PIXELS[..., 0]))
    palette = Image.fromarray(PIXELS).quantize(8)
    index = palette.getpixel((1, 0))
    assert decode(encode(palette, transparency=index))[0, 1].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(decode(encode(palette)), PIXELS)


def test_cmyk_and_black_and_white_are_converted() -> None:
    np.testing.assert_array_equal(decode(encode(Image.fromarray(PIXELS).convert("CMYK"), "TIFF")), PIXELS)
    bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(encode(bits), GREY)[..., 0], [[0, 255, 255]])


def png(width: int, height: int, bit_depth: int, color_type: int, scanlines: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scanlines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_colours_of_16_bits_keep_their_high_bytes_and_grey_ones_are_refused() -> None:
    content = png(1, 1, 16, 2, b"\0" + bytes([1, 200, 2, 100, 255, 255]))
    np.testing.assert_array_equal(decode(content)[0, 0], [1, 2, 255])
    with pytest.raises(MediaUnreadable, match=r"pixels of mode I;16, which do not fit into 8 bits; convert the file"):
        decode_image(encode(np.zeros((2, 3), np.uint16)), GREY)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_or_a_document_of_several_pages_is_refused(file_format: str) -> None:
    content = encode(PIXELS, file_format, save_all=True, append_images=[Image.fromarray(PIXELS[::-1])])
    with pytest.raises(MediaUnreadable, match="2 frames or pages, where one image is required"):
        decode_image(content, RGB)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_no_image(file_format: str) -> None:
    content = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), file_format)
    with pytest.raises(MediaUnreadable, match="no image: "):
        decode_image(content[: len(content) // 2], RGB)


@pytest.mark.parametrize("content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_other_content_is_no_image(content: bytes) -> None:
    with pytest.raises(MediaUnreadable, match="no format that Pillow knows"):
        decode_image(content, RGB)


def test_no_more_pixels_are_decoded_than_the_budget_has() -> None:
    budget = MediaBudget(10)
    decode_image(encode(PIXELS), RGB, budget)
    with pytest.raises(MediaTooLarge, match="2 x 3 pixels"):
        decode_image(encode(PIXELS), RGB, budget)
    with pytest.raises(MediaTooLarge, match="2 x 3 pixels"):
        decode_image(encode(PIXELS), ImageDecoding(mode="RGB", size=(5, 5)), MediaBudget(10))
    with pytest.raises(MediaTooLarge, match="more than 178,956,970 pixels"):
        decode_image(png(60_000, 60_000, 8, 0, b""), GREY, MediaBudget(10))
