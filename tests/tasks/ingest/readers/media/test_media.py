"""Images, recordings and IDX arrays: a row per file or array. Files that cannot be decoded are malformed."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.io import wavfile

from bloomery.data_contracts.errors import DataMissing

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def write_image(path: Path, pixels: np.ndarray = PIXELS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_an_image_is_stored_channel_first_with_its_folder_as_label(ingest_rows, tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png")
    write_image(tmp_path / "dog" / "2.BMP")
    (tmp_path / "dog" / "3.png").write_bytes(b"no image")
    write_image(tmp_path / "dog" / "4.png", np.zeros((2, 3), np.uint16))
    (tmp_path / "README.md").write_text("about cats")
    result = ingest_rows(source=str(tmp_path), format="images", mode="RGB")
    assert [(row["path"], row["label"]) for row in result.rows] == [("cat/1.png", "cat"), ("dog/2.BMP", "dog")]
    assert result.rows[0]["image"] == PIXELS.transpose(2, 0, 1).reshape(-1).tolist()
    assert result.table.schema.field("image").type == pa.list_(pa.uint8())
    assert [(file, reason.split(",")[0]) for file, _, _, reason in result.malformed] == [
        ("dog/3.png", "no image: no format that Pillow knows"),
        ("dog/4.png", "pixels of mode I;16"),
    ]


def test_images_are_resized_and_converted_to_grey(ingest_rows, tmp_path: Path) -> None:
    write_image(tmp_path / "a_7.png")
    write_image(tmp_path / "b_8.png", np.full((9, 9, 3), 200, np.uint8))
    result = ingest_rows(
        source=str(tmp_path / "*.png"), mode="L", size=[4, 5], path_pattern=r"(?P<who>[a-z])_(?P<label>\d)"
    )
    assert [(row["who"], row["label"], len(row["image"])) for row in result.rows] == [("a", "7", 20), ("b", "8", 20)]
    assert set(result.rows[1]["image"]) == {200}


def test_a_photograph_is_stored_upright(ingest_rows, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(PIXELS).save(tmp_path / "1.png", exif=exif)
    write_image(tmp_path / "2.png", np.rot90(PIXELS, -1))
    first, second = ingest_rows(source=str(tmp_path), format="images", mode="RGB").rows
    assert first["image"] == second["image"]


def test_a_source_of_malformed_images_alone_is_refused_with_a_reason(ingest_rows, tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", np.zeros((2, 3), np.uint16))
    with pytest.raises(DataMissing, match=r"no images in .* \(3 files are malformed; 2\.png: pixels of mode I;16"):
        ingest_rows(source=str(tmp_path), format="images", mode="L")


def test_images_of_two_sizes_are_refused_without_a_size(ingest_rows, tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    write_image(tmp_path / "2.png", PIXELS[:1])
    with pytest.raises(DataMissing, match="sizes 2 x 3 and 1 x 3"):
        ingest_rows(source=str(tmp_path), format="images", mode="RGB")


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    sink = io.BytesIO()
    wavfile.write(sink, rate, samples)
    return sink.getvalue()


def test_recordings_in_a_zip_are_scaled_to_minus_one_to_one(ingest_rows, tmp_path: Path) -> None:
    stereo = np.array([[0, 16384], [-32768, 0]], np.int16)
    members = {
        "r/1_ann.wav": wav(np.array([0, 16384, -32768], np.int16)),
        "r/2_bob.wav": wav(np.array([128, 255, 0], np.uint8)),
        "r/3_bob.wav": wav(np.array([0.5, -0.25], np.float32)),
        "r/4_bob.wav": wav(np.array([1, 2], np.int16), rate=16000),
        "r/5_bob.wav": b"RIFF",
        "r/6_bob.wav": wav(stereo),
        "r/other.wav": wav(np.array([1], np.int16)),
        "README.md": b"about",
    }
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    options = {"format": "audio", "path_pattern": r"(?P<label>\d)_(?P<speaker>\w+)\.wav", "sample_rate": 8000}
    result = ingest_rows(source=str(tmp_path / "all.zip"), **options)
    assert [tuple(row.values()) for row in result.rows] == [
        ("r/1_ann.wav", "1", "ann", [0.0, 0.5, -1.0], 8000),
        ("r/2_bob.wav", "2", "bob", [0.0, 0.9921875, -1.0], 8000),
        ("r/3_bob.wav", "3", "bob", [0.5, -0.25], 8000),
    ]
    assert result.table.schema.field("wave").type == pa.list_(pa.float32())
    reasons = {file: reason for file, _, _, reason in result.malformed}
    assert reasons["r/4_bob.wav"] == "16000 Hz, where 8000 is required"
    assert reasons["r/6_bob.wav"].startswith("2 channels")
    assert list(reasons) == ["r/4_bob.wav", "r/5_bob.wav", "r/6_bob.wav", "r/other.wav"]
    assert ingest_rows(source=str(tmp_path / "all.zip"), **options, mono=True).rows[3]["wave"] == [0.25, -0.5]


def test_recordings_of_two_rates_are_refused_or_converted(ingest_rows, tmp_path: Path) -> None:
    tone = np.sin(np.arange(400) / 9)
    (tmp_path / "1.wav").write_bytes(wav((tone * 9999).astype(np.int16)))
    (tmp_path / "2.wav").write_bytes(wav((np.repeat(tone, 2) * 9999).astype(np.int16), rate=16000))
    options = {"source": str(tmp_path), "format": "audio"}
    with pytest.raises(DataMissing, match="the sample rates 8000 Hz and 16000 Hz") as caught:
        ingest_rows(**options)
    assert ("`sample_rate`" in caught.value.remedy, "`resample`" in caught.value.remedy) == (True, True)
    result = ingest_rows(**options, sample_rate=8000, resample=True)
    assert [(len(row["wave"]), row["sample_rate"]) for row in result.rows] == [(400, 8000), (400, 8000)]
    np.testing.assert_allclose(result.rows[0]["wave"], result.rows[1]["wave"], atol=0.03)


def test_recordings_without_sound_are_malformed(ingest_rows, tmp_path: Path) -> None:
    for name, samples in {"empty": [], "silent": [0] * 50, "sound": [1, 2]}.items():
        (tmp_path / f"{name}.wav").write_bytes(wav(np.array(samples, np.int16)))
    result = ingest_rows(source=str(tmp_path), format="audio")
    assert [row["path"] for row in result.rows] == ["sound.wav"]
    assert [(file, reason) for file, _, _, reason in result.malformed] == [
        ("empty.wav", "an empty recording, without samples"),
        ("silent.wav", "silence: all 50 samples are equal"),
    ]


def test_a_damaged_zip_is_reported(ingest_rows, tmp_path: Path) -> None:
    (tmp_path / "all.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataMissing, match="cannot be read as zip"):
        ingest_rows(source=str(tmp_path / "all.zip"), format="audio")


def test_a_source_of_malformed_recordings_alone_is_refused(ingest_rows, tmp_path: Path) -> None:
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    with pytest.raises(DataMissing, match="there are no recordings"):
        ingest_rows(source=str(tmp_path), format="audio")


def idx(values: np.ndarray) -> bytes:
    code = {"u1": 0x08, "i2": 0x0B, "f4": 0x0D}[values.dtype.str[1:]]
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_idx_arrays_are_read_with_their_labels(ingest_rows, tmp_path: Path, kind: type) -> None:
    images = np.arange(12, dtype=kind).reshape(3, 2, 2)
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "labels").write_bytes(idx(np.array([7, 0, 9], np.uint8)))
    result = ingest_rows(source=str(tmp_path / "images.gz"), labels=str(tmp_path / "labels"), format="idx")
    assert result.rows == [
        {"id": row, "image": images[row].reshape(-1).tolist(), "label": label} for row, label in enumerate([7, 0, 9])
    ]
    assert result.table.schema.field("image").type.value_type == pa.from_numpy_dtype(kind)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with the bytes"),
        (idx(np.zeros((3, 2), np.uint8))[:-1], "ends before its last value"),
        (idx(np.zeros((3, 2), np.uint8)) + b"x", "continues after its last value"),
        (idx(np.zeros((3, 2), np.uint8))[:6], "ends inside its header"),
        (idx(np.zeros((2, 2), np.uint8)), "3 labels for 2 arrays"),
    ],
)
def test_a_damaged_idx_file_is_reported(ingest_rows, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    (tmp_path / "labels").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(DataMissing, match=message):
        ingest_rows(source=str(tmp_path / "images"), labels=str(tmp_path / "labels"), format="idx")


def test_members_of_one_zip_are_assigned_to_splits_by_name(ingest_rows, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sounds.zip", "w") as archive:
        for name in ("5_ann_0", "5_ann_10", "6_bob_0"):
            archive.writestr(f"takes/{name}.wav", wav(np.arange(4, dtype=np.int16)))
    path = str(tmp_path / "sounds.zip")
    sources = [
        {"source": path, "files": r"_0\.wav$", "part": "test"},
        {"source": path, "files": r"_[1-9]\d*\.wav$", "part": "train"},
    ]
    result = ingest_rows(sources=sources, format="audio", path_pattern=r"(?P<label>\d)_")
    assert [(row["path"], row["label"], row["part"]) for row in result.rows] == [
        ("takes/5_ann_0.wav", "5", "test"),
        ("takes/6_bob_0.wav", "6", "test"),
        ("takes/5_ann_10.wav", "5", "train"),
    ]
