"""Sequences: a file for each, or arrays of arrays."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers.sequences.nested_arrays import flatten_arrays, require_sizes
from bloomery.tasks.ingest.stage import ingest, locate_source

NESTED = pa.array([[[1, 2], [3, 4]], None, [], [[5, 6], None], [[7, 8, 9]], [[1, 1]]], pa.list_(pa.list_(pa.int8())))


@pytest.mark.parametrize("start", [0, 3])
def test_inner_arrays_are_joined_and_their_lengths_counted(start: int) -> None:
    flat = [[1, 2, 3, 4], None, [], None, [7, 8, 9], [1, 1]]
    flattened = flatten_arrays(NESTED.slice(start))
    assert flattened.values.to_pylist() == flat[start:]
    assert flattened.values.type == pa.list_(pa.int8())
    assert flattened.sizes == (Counter({2: 4, 3: 1}) if not start else Counter({2: 2, 3: 1}),)
    checked = [[1, 2, 3, 4], None, [], None, None, [1, 1]]
    assert require_sizes(NESTED.slice(start), (2,)).to_pylist() == checked[start:]


def test_deeper_arrays_are_joined(ingest_rows, tmp_path: Path) -> None:
    values = [[[[1], [2]]], [[[3], [4]], [[5], [6]]], [[[1]]]]
    pq.write_table(pa.table({"x": values, "y": [1, 2, 3]}), tmp_path / "rows.parquet")
    result = ingest_rows(source=str(tmp_path / "rows.parquet"), flatten={"x": [2, 1]}, rename={"x": "z"})
    assert result.rows == [{"z": [1, 2], "y": 1}, {"z": [3, 4, 5, 6], "y": 2}, {"z": None, "y": 3}]


def test_objects_of_numbers_are_steps(ingest_rows, tmp_path: Path) -> None:
    steps = [[{"x": 1, "y": 2.5}, {"x": 3, "y": None}], [], None, [{"x": 4, "y": 5.0}, None]]
    pq.write_table(pa.table({"steps": steps}), tmp_path / "rows.parquet")
    result = ingest_rows(source=str(tmp_path / "rows.parquet"), flatten={"steps": [2]})
    assert result.table["steps"].to_pylist() == [[1.0, 2.5, 3.0, None], [], None, None]
    whole = pa.array([[{"a": 1, "b": 2}]]).slice(0)
    assert flatten_arrays(whole).values.type == pa.list_(pa.int64())


@pytest.mark.parametrize(
    ("flatten", "message"),
    [({"x": [2, 2]}, "arrays 2 deep, and there are 2 inner lengths"), ({"z": [2]}, "there is no column z of arrays")],
)
def test_the_inner_lengths_must_fit_the_column(flatten: Any, message: str, home: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": NESTED}), tmp_path / "rows.parquet")
    source = DataSource(source=str(tmp_path / "rows.parquet"), flatten=flatten)
    with pytest.raises(RecipeInvalid, match=message):
        ingest(locate_source(source))


FILES = {
    "a/1.csv": "time,x,y\n12:00,1,2\n12:01,3.5,\n",
    "b/1.csv": "time,x,y\n12:00,5,6\n",
    "b/2.csv": "time,x\n12:00,5\n",
    "b/3.csv": "time,x,y\n12:00,abc,6\n",
    "b/4.csv": "time,x,y\n12:00,1,6\n12:00,1,6,7\n",
    "b/5.csv": "time,x,y\n",
    "b/6.csv": "",
}


@pytest.mark.parametrize("is_zip", [False, True])
def test_each_file_is_a_row_with_its_folder_as_label(ingest_rows, tmp_path: Path, is_zip: bool) -> None:
    source = tmp_path / ("rows.zip" if is_zip else "rows")
    if is_zip:
        with zipfile.ZipFile(source, "w") as archive:
            for name, text in FILES.items():
                archive.writestr(name, text)
    for name, text in FILES.items() if not is_zip else ():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    result = ingest_rows(source=str(source), format="csv", unit="file", drop=["time"])
    assert not result.record.is_text
    assert result.rows == [
        {"path": "a/1.csv", "label": "a", "values": [[1.0, 2.0], [3.5, None]]},
        {"path": "b/1.csv", "label": "b", "values": [[5.0, 6.0]]},
    ]
    assert [(path, reason) for path, _, _, reason in result.malformed] == [
        ("b/2.csv", "the columns time, x, where time, x, y are required"),
        ("b/3.csv", "column x: 'abc' is no number"),
        ("b/4.csv", "line 3: 4 cell(s), where 3 are required"),
        ("b/5.csv", "no line below the header"),
        ("b/6.csv", result.malformed[-1][3]),
    ]
    assert "it is empty" in result.malformed[-1][3]


def test_groups_of_the_path_replace_the_label(ingest_rows, tmp_path: Path) -> None:
    for name in ("up_1", "up_2", "down_1", "odd"):
        (tmp_path / f"{name}.csv").write_text("1;2,5\n")
    options = {"header": False, "columns": ["x", "y"], "delimiter": ";", "decimal": ","}
    pattern = r"(?P<way>up|down)_(?P<number>\d)"
    result = ingest_rows(source=str(tmp_path), format="csv", unit="file", path_pattern=pattern, **options)
    assert result.rows[0] == {"path": "down_1.csv", "way": "down", "number": "1", "values": [[1.0, 2.5]]}
    assert len(result.rows) == 3
    assert [path for path, *_ in result.malformed] == ["odd.csv"]


def test_each_array_file_is_a_row(ingest_rows, tmp_path: Path) -> None:
    arrays = {"1": np.array([1, 2]), "2": np.array([[1.5, np.nan]]), "3": np.zeros((0, 2)), "4": np.zeros((1, 1, 1))}
    for name, array in {**arrays, "5": np.array(["a"]), "6": np.array([{}], object)}.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    result = ingest_rows(source=str(tmp_path), format="numpy", unit="file", path_pattern=r"(?P<id>\d)\.")
    assert result.rows == [
        {"path": "1.npy", "id": "1", "values": [[1.0], [2.0]]},
        {"path": "2.npy", "id": "2", "values": [[1.5, None]]},
    ]
    assert [(path, reason.split(",")[0]) for path, _, _, reason in result.malformed] == [
        ("3.npy", "an array without values"),
        ("4.npy", "an array 1 x 1 x 1 of type float64"),
        ("5.npy", "an array 1 of type <U1"),
        ("6.npy", "no array of numbers: Object arrays cannot be loaded when allow_pickle=False"),
    ]


def test_a_column_to_leave_out_must_exist(home: Path, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("x\n1\n")
    for drop, message in ((["z"], "there is no column z"), (["x"], "no column is left")):
        source = DataSource(source=str(tmp_path), format="csv", unit="file", drop=drop)
        with pytest.raises(DataMissing, match=message):
            ingest(locate_source(source))
