"""The sets that scikit-learn carries come with an id, names that a contract can have, and classes by name."""

from __future__ import annotations

import re

import pytest

from bloomery.tasks.ingest.readers.sklearn_datasets import DATASET_NAMES

SHAPES = {"breast_cancer": (569, 32), "diabetes": (442, 12), "digits": (1797, 3), "iris": (150, 6), "wine": (178, 15)}


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_a_carried_set_comes_whole(read, name: str) -> None:
    table = read(source=f"sklearn:{name}").table
    assert (table.num_rows, table.num_columns) == SHAPES[name]
    assert table["id"].to_pylist() == list(range(table.num_rows))
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", column) for column in table.schema.names)
    assert sum(column.null_count for column in table.columns) == 0


def test_a_label_is_the_name_of_the_class(read) -> None:
    assert set(read(source="sklearn:iris").table["label"].to_pylist()) == {"setosa", "versicolor", "virginica"}
