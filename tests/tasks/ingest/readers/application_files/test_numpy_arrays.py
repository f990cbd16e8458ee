"""Arrays of NumPy: a row for each entry along the first axis."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.stage import ingest, locate_source

MATRIX = np.arange(6.0).reshape(3, 2)
LABELS = np.array([0, 1, 0])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_vectors_and_narrow_matrices_become_columns(ingest_rows, tmp_path: Path, save: Any, order: str) -> None:
    path = tmp_path / "rows.npz"
    save(path, x=np.array(MATRIX, order=order), y=LABELS[:, None], name=np.array(["a", "b", "ç"]))
    assert ingest_rows(source=str(path)).rows == [
        {"x_1": 0.0, "x_2": 1.0, "y": 0, "name": "a"},
        {"x_1": 2.0, "x_2": 3.0, "y": 1, "name": "b"},
        {"x_1": 4.0, "x_2": 5.0, "y": 0, "name": "ç"},
    ]


def test_arrays_are_selected_and_named_by_options(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x_train=MATRIX, y_train=LABELS, x_test=MATRIX[:1] + 9, y_test=LABELS[:1] + 9)
    sources = [
        {"source": str(path), "arrays": {"x": "x_train", "label": "y_train"}, "part": "train"},
        {"source": str(path), "arrays": {"x": "x_test", "label": "y_test"}, "part": "test"},
    ]
    result = ingest_rows(sources=sources, columns=["a", "b"])
    assert [tuple(row.values()) for row in result.rows] == [
        (0.0, 1.0, 0, "train"),
        (2.0, 3.0, 1, "train"),
        (4.0, 5.0, 0, "train"),
        (9.0, 10.0, 9, "test"),
    ]
    assert result.table.schema.names == ["a", "b", "label", "part"]


def test_images_are_stored_channel_first_and_large_matrices_as_arrays(ingest_rows, tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.save(tmp_path / "images.npy", images)
    result = ingest_rows(source=str(tmp_path / "images.npy"))
    assert result.table.schema.field("image").type == pa.list_(pa.uint8())
    assert result.rows[1]["image"] == images[1].transpose(2, 0, 1).reshape(-1).tolist()
    np.savez(tmp_path / "rows.npz", flat=np.zeros((2, 300), np.float16))
    result = ingest_rows(source=str(tmp_path / "rows.npz"))
    assert result.table.schema.field("flat").type == pa.list_(pa.float32())


def test_series_keep_the_values_of_each_step_together(ingest_rows, tmp_path: Path) -> None:
    steps = np.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    np.save(tmp_path / "series.npy", steps)
    source = str(tmp_path / "series.npy")
    assert ingest_rows(source=source).rows[1]["values"] == steps[1].tolist()
    assert ingest_rows(source=source, flatten={"values": [3]}).rows[1]["values"] == steps[1].reshape(-1).tolist()


def test_a_label_file_and_records_are_read(ingest_rows, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", MATRIX)
    np.save(tmp_path / "y.npy", LABELS.astype(bool))
    result = ingest_rows(source=str(tmp_path / "x.npy"), labels=str(tmp_path / "y.npy"))
    assert result.rows[1] == {"column_1": 2.0, "column_2": 3.0, "label": True}
    records = np.array(
        [(1, b"x", np.datetime64("2024-01-02"), (1.0, 2.0))],
        [("a", ">i4"), ("b", "S3"), ("t", "M8[s]"), ("v", "f4", 2)],
    )
    np.save(tmp_path / "records.npy", records)
    row = ingest_rows(source=str(tmp_path / "records.npy")).rows[0]
    assert (row["a"], row["b"], str(row["t"]), row["v"]) == (1, "x", "2024-01-02 00:00:00", [1.0, 2.0])


def test_the_selection_of_arrays_is_part_of_the_identity(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, a=LABELS, b=LABELS)
    sources = [DataSource(source=str(path), arrays={"x": name}) for name in "ab"]
    first, second = (locate_source(source).digest for source in sources)
    assert first != second


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "pickled": ({"a": np.array([{}], object)}, {}, "array a has pickled Python objects"),
    "complex": ({"a": np.array([1j])}, {}, "array a is of type complex128"),
    "single value": ({"a": np.array(1)}, {}, "array a is a single value"),
    "lengths": ({"a": MATRIX, "b": LABELS[:2]}, {}, "several numbers of rows: a 3 x 2, b 2.*\n.*\n.*\n.*`arrays`"),
    "unknown": ({"a": LABELS}, {"arrays": {"x": "c"}}, "it has no array c.*\n.*some of a"),
    "names": ({"a": MATRIX}, {"columns": ["x"]}, "2 values in a row, and there are 1 names"),
    "repeated": ({"a": MATRIX, "a_1": LABELS}, {}, "two columns have the name a_1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_arrays_that_are_no_rows_are_refused(fault: str, home: Path, tmp_path: Path) -> None:
    arrays, options, message = FAULTS[fault]
    np.savez(tmp_path / "rows.npz", allow_pickle=True, **arrays)
    with pytest.raises(DataMissing, match=message):
        ingest(locate_source(DataSource(source=str(tmp_path / "rows.npz"), **options)))


def test_an_incomplete_file_is_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, MATRIX)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataMissing, match="array rows ends before its last value"):
        ingest(locate_source(DataSource(source=str(path))))
    np.savez(tmp_path / "rows.npz", a=MATRIX)
    (tmp_path / "rows.npz").write_bytes((tmp_path / "rows.npz").read_bytes()[:-40])
    with pytest.raises(DataMissing, match="File is not a zip file"):
        ingest(locate_source(DataSource(source=str(tmp_path / "rows.npz"))))
    path.write_bytes(b"no array")
    with pytest.raises(DataMissing, match="array rows: the magic string is not correct"):
        ingest(locate_source(DataSource(source=str(path))))


def test_times_of_any_unit_are_read(ingest_rows, tmp_path: Path) -> None:
    arrays = {
        "month": np.array(["2024-03", "NaT"], "M8[M]"),
        "week": np.array(["2024-03-07", "NaT"], "M8[W]"),
        "hour": np.array(["2024-03-01T05", "NaT"], ">M8[h]"),
        "quarter": np.array(["2024-03-01T05:15", "NaT"], "M8[15m]"),
        "took": np.array([2, "NaT"], "m8[D]"),
    }
    np.savez(tmp_path / "rows.npz", **arrays)
    first, second = ingest_rows(source=str(tmp_path / "rows.npz")).rows
    assert first == {
        "month": dt.date(2024, 3, 1),
        "week": dt.date(2024, 3, 7),
        "hour": dt.datetime(2024, 3, 1, 5),
        "quarter": dt.datetime(2024, 3, 1, 5, 15),
        "took": 2 * 86_400.0,
    }
    assert set(second.values()) == {None}
    np.save(tmp_path / "times.npy", np.array(["NaT"], "M8"))
    with pytest.raises(DataMissing, match="is of type datetime64"):
        ingest(locate_source(DataSource(source=str(tmp_path / "times.npy"))))
