"""Data sets of Hugging Face: the features in the schema of Arrow and Parquet files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import wavfile

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.locations import find_row_files
from bloomery.tasks.ingest.readers.application_files.huggingface import has_features, is_dataset, list_splits
from bloomery.tasks.ingest.stage import ingest, locate_source

CLASSES = {"_type": "ClassLabel", "names": ["cat", "dog"]}
FILE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def to_table(columns: dict[str, pa.Array], features: dict[str, Any]) -> pa.Table:
    metadata = json.dumps({"info": {"features": features}})
    return pa.table(columns).replace_schema_metadata({"huggingface": metadata})


def save_split(folder: Path, table: pa.Table, num_files: int = 1) -> None:
    """Writes a folder as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True, exist_ok=True)
    step = -(-table.num_rows // num_files)
    names = [f"data-{index:05}-of-{num_files:05}.arrow" for index in range(num_files)]
    for index, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.slice(index * step, step))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def image_file(pixels: np.ndarray = PIXELS) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": "a.png"}


def test_classes_have_their_names(ingest_rows, tmp_path: Path) -> None:
    columns = {"text": pa.array(["a", "b", "c", "d"], pa.large_string()), "label": pa.array([1, 0, -1, None])}
    save_split(tmp_path / "set", to_table(columns, {"label": CLASSES, "text": {"_type": "Value"}}), num_files=2)
    result = ingest_rows(source=str(tmp_path / "set"), format="huggingface")
    assert not result.record.is_text
    assert [tuple(row.values()) for row in result.rows] == [("a", "dog"), ("b", "cat"), ("c", None), ("d", None)]


def test_images_are_decoded_and_others_malformed(ingest_rows, tmp_path: Path) -> None:
    files = [
        image_file(),
        {"bytes": b"x", "path": None},
        {"bytes": None, "path": "b.png"},
        None,
        image_file(PIXELS + 9),
    ]
    columns = {"id": pa.array(range(5)), "image": pa.array(files, FILE_TYPE)}
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(to_table(columns, {"image": {"_type": "Image"}}), folder / "train-00000-of-00001.parquet")
    result = ingest_rows(source=str(folder), format="huggingface", mode="RGB")
    assert result.table.schema.field("image").type == pa.list_(pa.uint8())
    assert [row["id"] for row in result.rows] == [0, 4]
    assert result.rows[1]["image"] == (PIXELS + 9).transpose(2, 0, 1).reshape(-1).tolist()
    assert [(line, reason.split(":")[0]) for _, line, _, reason in result.malformed] == [
        (2, "no image"),
        (3, "column image"),
        (4, "column image"),
    ]
    grey = ingest_rows(source=str(folder), format="huggingface", mode="L", size=(2, 2))
    assert len(grey.rows[0]["image"]) == 4


def test_recordings_are_decoded_with_their_rate(ingest_rows, tmp_path: Path) -> None:
    stream = io.BytesIO()
    wavfile.write(stream, 8_000, np.array([0, 16_384, -32_768], np.int16))
    columns = {"sound": pa.array([{"bytes": stream.getvalue(), "path": "a.wav"}], FILE_TYPE)}
    save_split(tmp_path / "set", to_table(columns, {"sound": {"_type": "Audio", "sampling_rate": 8_000}}))
    result = ingest_rows(source=str(tmp_path / "set"), format="huggingface", mono=True)
    assert result.rows == [{"sound": [0.0, 0.5, -1.0], "sample_rate": 8_000}]


def test_images_of_several_sizes_need_a_size(home: Path, tmp_path: Path) -> None:
    files = [image_file(), image_file(np.zeros((4, 4, 3), np.uint8))]
    table = to_table({"image": pa.array(files, FILE_TYPE)}, {"image": {"_type": "Image"}})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataMissing, match=r"the sizes 2 x 3 and 4 x 4(.|\n)*set `size`"):
        ingest(locate_source(DataSource(source=str(tmp_path / "rows.parquet"), format="huggingface")))


def test_folders_and_names_of_files_tell_the_splits(tmp_path: Path) -> None:
    table = to_table({"label": pa.array([0, 1])}, {"label": CLASSES})
    saved, hub = tmp_path / "saved", tmp_path / "hub"
    for name in ("train", "validation"):
        save_split(saved / name, table)
        (hub / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, hub / "data" / f"{name}-00000-of-00001-0a1b.parquet")
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    assert [(split.name, Path(split.folder).name) for split in list_splits(str(saved))] == [
        ("train", "train"),
        ("validation", "validation"),
    ]
    assert list_splits(str(saved / "train")) == []
    assert [(split.name, Path(split.folder).name) for split in list_splits(str(hub))] == [
        ("train", "hub"),
        ("validation", "hub"),
    ]
    assert [is_dataset(folder) for folder in (saved, saved / "train", hub, tmp_path / "none")] == [True] * 3 + [False]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "rows.parquet")
    assert not has_features(tmp_path / "rows.parquet")


def test_changed_copies_beside_the_rows_are_not_read(ingest_rows, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save_split(folder, to_table({"label": pa.array([1, 0])}, {"label": CLASSES}))
    (folder / "cache-0a1b2c3d.arrow").write_bytes((folder / "data-00000-of-00001.arrow").read_bytes())
    assert ingest_rows(source=str(folder), format="huggingface").rows == [{"label": "dog"}, {"label": "cat"}]


def test_splits_of_other_names_are_listed_beside_the_usual_ones(tmp_path: Path) -> None:
    for name in ("train", "test", "extra_1"):
        pq.write_table(to_table({"label": pa.array([0])}, {}), tmp_path / f"{name}-00000-of-00001.parquet")
    splits = {split.name: split for split in list_splits(str(tmp_path))}
    assert sorted(splits) == ["extra_1", "test", "train"]
    source = DataSource(source=splits["extra_1"].folder, files=splits["extra_1"].files, format="huggingface")
    assert [file.relative for file in find_row_files(source, source.source_files[0])] == [
        "extra_1-00000-of-00001.parquet"
    ]


def test_each_column_of_recordings_has_rates_of_its_own(ingest_rows, tmp_path: Path) -> None:
    streams = []
    for rate in (8_000, 4_000):
        stream = io.BytesIO()
        wavfile.write(stream, rate, np.array([0, 16_384], np.int16))
        streams.append({"bytes": stream.getvalue(), "path": None})
    columns = {"a": pa.array(streams[:1], FILE_TYPE), "b": pa.array(streams[1:], FILE_TYPE)}
    features = {"a": {"_type": "Audio"}, "b": {"_type": "Audio"}}
    save_split(tmp_path / "two", to_table(columns, features))
    result = ingest_rows(source=str(tmp_path / "two"), format="huggingface")
    assert result.rows == [{"a": [0.0, 0.5], "sample_rate": 8_000, "b": [0.0, 0.5], "b_sample_rate": 4_000}]
    save_split(tmp_path / "own", to_table({"sample_rate": pa.array([1]), **columns}, {"a": {"_type": "Audio"}}))
    assert ingest_rows(source=str(tmp_path / "own"), format="huggingface", drop=["b"]).rows == [
        {"sample_rate": 1, "a": [0.0, 0.5], "a_sample_rate": 8_000}
    ]
