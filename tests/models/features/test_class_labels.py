"""Several labels with classes become class positions, negative where a label is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.output_units import class_mask, format_classes
from bloomery.data_contracts.serving.predictions import flatten_classes, format_prediction, max_difference
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode_rows, encoded_schema, fit, partial_statistics
from bloomery.models.features.labels import encode_class_outputs
from bloomery.models.inference.outputs import predictions_from

LABELS: list[list[str | None]] = [["red", "3"], ["blue", None], [None, "10"], ["green", "3"]]


def fit_labels(labels: list[list[Any]]) -> tuple[Encoder, pa.RecordBatch]:
    document = {"key": "id", "label": ["colour", "size"], "task": "classification"}
    features = Features.model_validate({**document, "inputs": [{"kind": "number", "columns": ["x"]}]})
    keys = range(len(labels))
    columns = [pa.array(keys), pa.array([float(key) for key in keys]), pa.array(labels, pa.list_(pa.string()))]
    rows = pa.RecordBatch.from_arrays(columns, names=["id", "x", features.label_column])
    documents = [next(partial_statistics(features, [part])).column(0)[0].as_py() for part in (rows[:2], rows[2:])]
    encoder = fit(features, documents, integer_columns=["id", "size"])
    return encoder, encode_rows(encoder, rows)


def test_each_label_has_classes_of_its_own_and_those_of_an_integer_column_are_integers():
    encoder, encoded = fit_labels(LABELS)
    assert encoder.features.task == "multitask"
    assert [output.classes for output in encoder.class_outputs] == [("blue", "green", "red"), (3, 10)]
    assert encoded["y"].to_pylist() == [[2, 0], [0, -100], [-100, 1], [1, 0]]
    assert encoded_schema(encoder, pa.int64()).field("y").type == encoded["y"].type == pa.list_(pa.int64())
    assert class_mask(encoder.class_outputs).tolist() == [[True, True, True], [True, True, False]]
    assert Encoder.model_validate_json(encoder.model_dump_json()) == encoder


def test_logits_beyond_the_classes_of_a_label_have_no_probability():
    encoder, _ = fit_labels(LABELS)
    outputs = np.array([[0.0, 1.0, 2.0, 1.0, 0.0, 50.0], [3.0, 0.0, 0.0, 0.0, 0.0, 0.0]], np.float32)
    shares = predictions_from(encoder, outputs)
    assert shares.shape == (2, 2, 3)
    np.testing.assert_allclose(shares.sum(axis=2), 1)
    assert (shares[:, 1, 2] == 0).all()
    predictions = [format_classes(encoder.class_outputs, row) for row in shares]
    assert [prediction["classes"] for prediction in predictions] == [
        {"colour": "red", "size": 3},
        {"colour": "blue", "size": 3},
    ]
    assert set(predictions[0]["probabilities"]["size"]) == {"3", "10"}
    assert max_difference(predictions[0], predictions[0]) == 0
    assert max_difference(predictions[0], predictions[1]) == 1
    assert format_prediction(predictions[1]).startswith("colour blue (0.9")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["red", "a"], ["red", "b"]], r"has 1 class\(es\): red"),
        ([["red", None], ["blue", None]], r"has 0 class\(es\): none"),
    ],
)
def test_a_label_needs_two_classes(labels: list[list[Any]], message: str):
    with pytest.raises(DataUnfit, match=message):
        fit_labels(labels)


def test_a_class_that_training_does_not_have_is_named_with_its_label():
    encoder, _ = fit_labels(LABELS)
    with pytest.raises(DataUnfit, match="pink") as failure:
        encode_class_outputs(encoder.class_outputs, pa.array([["pink", "3"]]))
    assert "colour" in failure.value.where


def test_each_label_has_a_column_of_its_own_in_tables_of_predictions():
    encoder, _ = fit_labels(LABELS)
    prediction = format_classes(encoder.class_outputs, np.array([[0.1, 0.2, 0.7], [0.6, 0.4, 0.0]]))
    assert flatten_classes(prediction) == {
        "colour": "red",
        "size": 3,
        "colour_probabilities": {"blue": 0.1, "green": 0.2, "red": 0.7},
        "size_probabilities": {"3": 0.6, "10": 0.4},
    }
