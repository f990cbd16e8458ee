"""Rows come in as the source has them, and what is missing is named."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_contracts.errors import DataMissing
from data_contracts.sources import Data
from tasks.ingest import ingest, locate


def test_the_carried_digits_come_in_whole(home: Path) -> None:
    rows = ingest.task.fn(locate(Data(source="sklearn:digits")))
    table = pq.read_table(home / rows.uri)
    assert (rows.num_rows, table.num_rows) == (1797, 1797)
    assert table["image"][0].as_py()[:6] == [0, 0, 5, 13, 9, 1]
    assert table["label"].to_pylist()[:10] == list(range(10))


def test_a_folder_of_files_is_read_as_one_table(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        pq.write_table(pa.table({"id": [number]}), folder / f"{number}.parquet")
    rows = ingest.task.fn(locate(Data(source=str(folder))))
    assert pq.read_table(home / rows.uri)["id"].to_pylist() == [0, 1, 2]


def test_the_source_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1]}), path)
    first = locate(Data(source=str(path))).digest
    pq.write_table(pa.table({"id": [2]}), path)
    assert locate(Data(source=str(path))).digest != first


@pytest.mark.parametrize("source", ["nowhere.parquet", "sklearn:unknown"])
def test_missing_data_is_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as caught:
        locate(Data(source=source if ":" in source else str(tmp_path / source)))
    assert source.removeprefix("sklearn:") in caught.value.found
    assert caught.value.exit_code == 2


def test_an_empty_folder_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="in the folder"):
        locate(Data(source=str(tmp_path)))


def test_a_file_that_was_cut_off_is_named(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataMissing, match="cannot be read as Parquet"):
        ingest.task.fn(locate(Data(source=str(path))))
