"""Splits that begin at configured times or numbers, with either engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.models.features.config import Features
from bloomery.tasks.prepare.stage import prepare

SPLIT_NAMES = ("train", "val", "test")
LOCAL, SPARK = Engine(kind="local"), Engine(kind="spark")
BY_TIME = ("seen", "2024-01-20", "2024-02-01T12:00:00+00:00")


def require_boundaries(home: Path, checked: Any, boundaries: tuple[Any, ...], people: pa.Table, engine: Engine) -> None:
    """Asserts that every prepared row is in the split of its time or number."""
    column, val_from, test_from = boundaries
    inputs = [{"kind": "number", "columns": ["height"], "missing": "median"}]
    split = {"by": "time", "column": column, "val_from": val_from, "test_from": test_from, "duplicates": "allow"}
    features = Features.model_validate({"key": "key", "label": "label", "inputs": inputs, "split": split})
    first, last = features.split.val_from, features.split.test_from
    moments = dict(zip(people["key"].to_pylist(), people[column].to_pylist(), strict=True))
    dataset = prepare.task.fn(checked, features, engine)
    for split_name in SPLIT_NAMES:
        keys = pq.read_table(home / getattr(dataset, split_name).uri)["key"].to_pylist()
        assert len(keys) > 100
        for moment in map(moments.get, keys):
            assert split_name == ("test" if moment >= last else "val" if moment >= first else "train")


@pytest.mark.parametrize("boundaries", [("family", 300, 700), BY_TIME], ids=["number", "time"])
def test_a_split_begins_at_its_boundary_whatever_the_number_of_rows(
    home: Path, people: pa.Table, checked_rows_of: Any, boundaries: tuple[Any, ...]
) -> None:
    for rows in (people, people.take(list(range(0, len(people), 3)))):
        require_boundaries(home, checked_rows_of(rows), boundaries, people, LOCAL)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
def test_spark_uses_the_same_boundaries(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    require_boundaries(home, checked_rows_of(people), BY_TIME, people, SPARK)
