"""Parts that begin at stated moments, whatever engine divides the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.models.features.config import Features
from bloomery.tasks.prepare.stage import prepare

PARTS = ("train", "val", "test")
LOCAL, SPARK = Engine(kind="local"), Engine(kind="spark")
BY_TIME = ("seen", "2024-01-20", "2024-02-01T12:00:00+00:00")


def require_cut(home: Path, checked: Any, cut: tuple[Any, ...], people: pa.Table, engine: Engine) -> None:
    """That every prepared row is in the part that its moment says."""
    column, val_from, test_from = cut
    inputs = [{"kind": "number", "columns": ["height"], "missing": "median"}]
    split = {"by": "time", "column": column, "val_from": val_from, "test_from": test_from, "duplicates": "allow"}
    features = Features.model_validate({"key": "key", "label": "label", "inputs": inputs, "split": split})
    first, last = features.split.val_from, features.split.test_from
    moments = dict(zip(people["key"].to_pylist(), people[column].to_pylist(), strict=True))
    dataset = prepare.task.fn(checked, features, engine)
    for part in PARTS:
        keys = pq.read_table(home / getattr(dataset, part).uri)["key"].to_pylist()
        assert len(keys) > 100
        for moment in map(moments.get, keys):
            assert part == ("test" if moment >= last else "val" if moment >= first else "train")


@pytest.mark.parametrize("cut", [("family", 300, 700), BY_TIME], ids=["number", "time"])
def test_a_part_begins_at_its_first_moment_however_many_rows_there_are(
    home: Path, people: pa.Table, checked_rows_of: Any, cut: tuple[Any, ...]
) -> None:
    for rows in (people, people.take(list(range(0, len(people), 3)))):
        require_cut(home, checked_rows_of(rows), cut, people, LOCAL)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_spark")
def test_spark_cuts_at_the_same_moment(home: Path, people: pa.Table, checked_rows_of: Any) -> None:
    require_cut(home, checked_rows_of(people), BY_TIME, people, SPARK)
