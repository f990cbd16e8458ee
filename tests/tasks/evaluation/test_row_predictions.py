"""Vectors become ranks where they are scored, and stay vectors where they are shown, logged and profiled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from bloomery.data_contracts.serving.predictions import format_prediction, max_difference
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.evaluation.held_out import decode_column, predicted_values
from bloomery.tasks.evaluation.row_predictions import predict_rows
from bloomery.tasks.monitoring.reference_profile import summarize_vectors

X = np.array([[1, 0], [2, 0], [3, 0]], np.float32)
Y = np.array([[4, 0], [5, 0], [4, 0]], np.int32)


def encoder_of(task: str) -> Encoder:
    return cast(Encoder, SimpleNamespace(features=SimpleNamespace(task=task)))


def test_positives_are_ranked_among_those_of_the_rows_and_each_text_is_computed_once():
    directions = {1: [1, 0], 2: [0, 1], 3: [0, 1], 4: [1, 0.1], 5: [0.1, 1]}
    num_rows = []

    def compute(x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.float32
        num_rows.append(len(x))
        return np.array([directions[int(row[0])] for row in x], np.float32)

    predictions = predict_rows(encoder_of("embedding"), X, Y, compute)
    assert predictions.values.tolist() == [1, 1, 2]
    assert predictions.vectors is not None
    assert predictions.vectors.shape == (3, 2)
    assert num_rows == [3, 2]


def test_no_rows_have_no_ranks():
    predictions = predict_rows(encoder_of("embedding"), X[:0], Y[:0], lambda x: np.zeros((len(x), 2), np.float32))
    assert len(predictions.values) == 0


def test_other_tasks_have_no_vectors():
    predictions = predict_rows(
        encoder_of("classification"), X, np.zeros(3), lambda x: np.zeros((len(x), 4), np.float32)
    )
    assert predictions.vectors is None
    assert predictions.values.tolist() == [[0.25] * 4] * 3


def test_stored_predictions_are_read_as_ranks_and_positions():
    dataset: Any = SimpleNamespace(task="embedding", classes=())
    table = pa.table({"truth": [0, 1], "prediction": [[1.0, 0.0], [0.0, 1.0]], "rank": [1.0, 7.0]})
    assert predicted_values(dataset, table).tolist() == [1, 7]
    assert decode_column(dataset, table["truth"]).tolist() == [0, 1]


def test_vectors_are_compared_by_cosine_whatever_their_length_is():
    first = {"embedding": [0.6, 0.8]}
    assert max_difference(first, {"embedding": [3, 4]}) == pytest.approx(0)
    assert max_difference(first, {"embedding": [-0.6, -0.8]}) == pytest.approx(2)
    assert max_difference(first, {"embedding": [0.6]}) == 2
    assert max_difference({"embedding": [0, 0]}, {"embedding": [0, 0]}) == 0
    assert format_prediction(first) == "[0.6, 0.8, …] with 2 values"


@pytest.mark.parametrize("kind", [pa.float32(), pa.int8()])
def test_profiles_of_vectors_do_not_depend_on_their_scale(kind):
    vectors = pa.array([[3, 4], [-6, -8], [0, 0]], pa.list_(kind))
    assert summarize_vectors(vectors).to_pylist() == pytest.approx([0.7, -0.7, 0])
