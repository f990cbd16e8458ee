"""Values of slices by key, and the order that keeps dependent rows adjacent."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from bloomery.data_contracts.records.records import Dataset, Release
from bloomery.models.features.config import Features
from bloomery.tasks.evaluation.scoring import GroundTruth, slice_table
from bloomery.tasks.evaluation.slices import bootstrap_order, find_slices, read_slice_values
from bloomery.tasks.infrastructure.settings import settings
from tests.examples import examples

ROWS = pa.table(
    {
        "id": pa.array([0, 1, 2, 3, 4, 5], pa.int32()),
        "town": ["B", "A", None, "A", "B", "A"],
        "hour": [3, 9, 2, 1, 0, 4],
    }
)


@pytest.fixture
def dataset(home: Path, release: Release) -> Dataset:
    """A data set with `ROWS` as its valid rows."""
    path = settings().home / "rows.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(ROWS, path)
    released = release.bento.choice.candidates.trained.dataset
    return released.model_copy(update={"valid_rows": released.valid_rows.model_copy(update={"uri": "rows.parquet"})})


def test_slice_values_are_in_the_order_of_the_keys(dataset: Dataset) -> None:
    values = read_slice_values(dataset, np.array([4, 0, 2]), ["town", "hour"])
    assert values.to_pydict() == {"town": ["B", "B", None], "hour": [0, 3, 2]}
    assert read_slice_values(dataset, pa.array([5], pa.int64()), ["id"]).to_pydict() == {"id": [5]}


def make_features(**options: Any) -> Features:
    number = {"kind": "number", "columns": ["hour"]}
    return Features.model_validate({"key": "id", "label": "y", "inputs": [number], **options})


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"split": {"by": "time", "column": "hour"}}, [4, 3, 2, 0, 5, 1]),
        ({"split": {"by": "group", "column": "town", "in_time": "hour"}}, [3, 5, 1, 4, 0, 2]),
        (
            {"inputs": [{"kind": "series", "columns": ["v"], "time": "hour", "group": "town", "length": 2}]},
            [3, 5, 1, 4, 0, 2],
        ),
    ],
    ids=["by key", "by time", "groups in time", "series"],
)
def test_dependent_rows_are_adjacent(options: dict[str, Any], order: list[int], dataset: Dataset) -> None:
    assert bootstrap_order(dataset, make_features(**options), np.arange(6)).tolist() == order


def test_slices_are_ordered_by_frequency() -> None:
    slices = find_slices(ROWS["town"])
    assert [(value, is_in.nonzero()[0].tolist()) for value, is_in in slices] == [
        ("A", [1, 3, 5]),
        ("B", [0, 4]),
        ("None", [2]),
    ]


@hypothesis_settings(deadline=None, max_examples=examples(50))
@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=60, max_size=200))
def test_many_numbers_are_split_into_disjoint_ranges(values: list[float | None]) -> None:
    ranges = find_slices(pa.chunked_array([pa.array(values, pa.float64())]))
    if len(set(values)) > 50:
        assert len(ranges) <= 5
        assert np.sum([is_in for _, is_in in ranges], axis=0).tolist() == [1] * len(values)


def test_slices_without_labels_of_several_outputs_have_no_score(dataset: Dataset) -> None:
    keys = np.arange(6)
    values = np.stack([keys, keys], axis=1).astype(np.float64)
    truth = np.where(np.isin(keys, [0, 4])[:, None], np.nan, values)  # the town B
    truth[2, 1] = np.nan
    dataset = dataset.model_copy(update={"task": "multioutput"})
    table = slice_table(dataset, ["town"], GroundTruth(keys, truth, keys), values + 1)
    assert (table["value"], table["score"]) == (["A", "None"], pytest.approx([1.0, 1.0]))
