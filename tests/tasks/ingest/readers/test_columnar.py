"""Columnar files keep their types."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.ingest.readers.columnar import read_raw_batches

TABLE = pa.table({"id": pa.array([1, 2], pa.int32()), "word": ["x", None], "image": pa.array([[1], [2, 3]])})


def write(path: Path, table: pa.Table = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".orc":
        pyarrow.orc.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path)
    else:
        pq.write_table(table, path)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".orc", ".arrow", ".feather"])
def test_every_format_gives_the_same_bytes_for_the_same_rows(ingest_rows, tmp_path: Path, suffix: str) -> None:
    result = ingest_rows(source=str(write(tmp_path / f"rows{suffix}")))
    assert not result.record.is_text
    assert result.rows == TABLE.to_pylist()
    assert result.table.schema.field("id").type == pa.int32()
    twin = ingest_rows(source=str(write(tmp_path / "twin.parquet")))
    assert result.record.digest == twin.record.digest


def test_large_and_dictionary_types_become_canonical_types(ingest_rows, tmp_path: Path) -> None:
    words = pa.array(["a", "b", "a"])
    table = pa.table(
        {"w": words.dictionary_encode(), "v": words.cast(pa.large_string()), "u": words.cast("string_view")}
    )
    result = ingest_rows(source=str(write(tmp_path / "rows.arrow", table)))
    assert set(result.table.schema.types) == {pa.string()}
    assert result.rows[1] == {"w": "b", "v": "b", "u": "b"}


def test_files_are_widened_to_one_type_and_folders_become_columns(ingest_rows, tmp_path: Path) -> None:
    write(tmp_path / "year=2019" / "a.parquet", pa.table({"x": [1], "y": ["p"]}))
    write(tmp_path / "year=2020" / "a.parquet", pa.table({"y": ["q"], "x": [0.5]}))
    result = ingest_rows(source=str(tmp_path))
    assert result.rows == [{"x": 1.0, "y": "p", "year": 2019}, {"x": 0.5, "y": "q", "year": 2020}]


@pytest.mark.parametrize("value", ["01", "a b", "__HIVE_DEFAULT_PARTITION__"])
def test_folder_names_that_are_not_integers_become_text(ingest_rows, tmp_path: Path, value: str) -> None:
    write(tmp_path / f"part={value.replace(' ', '%20')}" / "a.parquet", pa.table({"x": [1]}))
    expected = None if value.startswith("__") else value
    assert ingest_rows(source=str(tmp_path)).rows == [{"x": 1, "part": expected}]


def test_incompatible_types_are_reported(ingest_rows, tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", pa.table({"x": [1]}))
    write(tmp_path / "2.parquet", pa.table({"x": ["a"]}))
    with pytest.raises(DataMissing, match="together with the files after it"):
        ingest_rows(source=str(tmp_path))


def test_rows_of_several_sources_have_a_split_column(ingest_rows, tmp_path: Path) -> None:
    sources = [
        {"source": str(write(tmp_path / "a.parquet", pa.table({"x": [1]}))), "part": "train"},
        {"source": str(write(tmp_path / "b.parquet", pa.table({"x": [2.5]}))), "part": "test"},
    ]
    result = ingest_rows(sources=sources, row_id="id", rename={"x": "z"})
    assert result.rows == [{"id": 0, "z": 1.0, "part": "train"}, {"id": 1, "z": 2.5, "part": "test"}]


@pytest.mark.parametrize("suffix", [".parquet", ".orc", ".arrow"])
def test_a_damaged_file_is_reported(ingest_rows, tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}")
    path.write_bytes(b"\x13" * 40)
    with pytest.raises(DataMissing, match="cannot be read as"):
        ingest_rows(source=str(path))


def test_numbers_of_16_bits_are_widened_in_arrays_too(ingest_rows, tmp_path: Path) -> None:
    numbers = pa.array([[1.5, 2.0], [0.25, 3.0]], pa.list_(pa.float32()))
    columns = {
        "a": pa.array([1.5, None], pa.float32()).cast(pa.float16()),
        "b": numbers.cast(pa.list_(pa.float16())),
        "c": numbers.cast(pa.list_(pa.float32(), 2)).cast(pa.list_(pa.float16(), 2)),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    result = ingest_rows(source=str(tmp_path / "rows.parquet"))
    assert result.rows == [
        {"a": 1.5, "b": [1.5, 2.0], "c": [1.5, 2.0]},
        {"a": None, "b": [0.25, 3.0], "c": [0.25, 3.0]},
    ]
    assert result.table.schema.field("b").type == pa.list_(pa.float32())


def test_parquet_is_read_in_batches_of_a_size(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3, 4, 5], "b.c": [{"d": number} for number in range(5)]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=3)
    with pa.OSFile(str(tmp_path / "rows.parquet")) as file:
        batches = list(read_raw_batches(file, "parquet", 2, ["b.c"]))
    assert max(batch.num_rows for batch in batches) == 2
    assert [name for batch in batches for name in batch.schema.names] == ["b.c"] * len(batches)
