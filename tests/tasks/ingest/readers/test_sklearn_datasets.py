"""The data sets that scikit-learn bundles have an id, valid column names, and class names as labels."""

from __future__ import annotations

import re

import pytest

from bloomery.tasks.ingest.readers.sklearn_datasets import DATASET_NAMES

SHAPES = {"breast_cancer": (569, 32), "diabetes": (442, 12), "digits": (1797, 3), "iris": (150, 6), "wine": (178, 15)}


@pytest.mark.parametrize("name", DATASET_NAMES)
def test_a_bundled_data_set_is_complete(ingest_rows, name: str) -> None:
    table = ingest_rows(source=f"sklearn:{name}").table
    assert (table.num_rows, table.num_columns) == SHAPES[name]
    assert table["id"].to_pylist() == list(range(table.num_rows))
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", column) for column in table.schema.names)
    assert sum(column.null_count for column in table.columns) == 0


def test_a_label_is_the_name_of_the_class(ingest_rows) -> None:
    assert set(ingest_rows(source="sklearn:iris").table["label"].to_pylist()) == {"setosa", "versicolor", "virginica"}
