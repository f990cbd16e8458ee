"""Sets of labels become vectors of 0 and 1, and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import encode_rows, encoded_schema, fit, partial_statistics
from bloomery.models.features.labels import encode_sets, mark_labels, name_labels

FEATURES = Features.model_validate(
    {"key": "id", "label": "tags", "task": "multilabel", "inputs": [{"kind": "number", "columns": ["x"]}]}
)
TAGS = [["b"], [], ["c", "a"], ["a", "a"]]


def make_rows(tags: list[list[str] | None], kind: pa.DataType | None = None) -> pa.RecordBatch:
    columns = [pa.array(range(len(tags))), pa.array([float(number) for number in range(len(tags))])]
    sets = pa.array(tags, pa.list_(kind or pa.string()))
    return pa.RecordBatch.from_arrays([*columns, sets], names=["id", "x", "tags"])


def test_classes_are_the_labels_of_the_training_rows_and_a_row_may_have_none():
    rows = make_rows(TAGS)
    encoder = fit(FEATURES, partial_statistics(FEATURES, [rows]).__next__().column(0).to_pylist())
    assert encoder.classes == ("a", "b", "c")
    assert encoder.units is None
    encoded = encode_rows(encoder, rows)
    assert encoded["y"].to_pylist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert encoded_schema(encoder, pa.int64()).field("y").type == encoded["y"].type == pa.list_(pa.float32())


def test_labels_may_be_integers():
    rows = make_rows([[3], [1, 3], []], pa.int64())
    encoder = fit(FEATURES, partial_statistics(FEATURES, [rows]).__next__().column(0).to_pylist())
    assert encoder.classes == (1, 3)
    assert encode_rows(encoder, rows)["y"].to_pylist() == [[0, 1], [1, 1], [0, 0]]


def test_names_and_marks_are_the_reverse_of_each_other():
    classes, sets = ("a", "b", "c"), pa.array([["b", "c"], [], ["a"]])
    marks = mark_labels(classes, sets)
    assert marks.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert name_labels(classes, marks).to_pylist() == sets.to_pylist()
    assert name_labels(classes, np.zeros((0, 3))).to_pylist() == []


def test_a_sliced_array_and_null_elements_are_read():
    sets = pa.array([["a"], ["b", None], ["c"]]).slice(1)
    assert mark_labels(("b", "c"), sets).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([["a"], None], "1 row.* no list of labels"),
        ([["a"], ["d"]], "labels d are in the data, but not in its train"),
    ],
)
def test_a_missing_set_and_an_unknown_label_are_errors(sets, message):
    with pytest.raises(DataUnfit, match=message):
        encode_sets(("a", "b"), "tags", pa.array(sets))


def test_a_single_label_in_all_rows_is_no_multilabel_task():
    documents = partial_statistics(FEATURES, [make_rows([["a"], [], ["a"]])]).__next__().column(0).to_pylist()
    with pytest.raises(DataUnfit, match=r"has 1 class"):
        fit(FEATURES, documents)
