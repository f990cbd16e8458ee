"""Several numeric labels become standardised vectors, with nan where one is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.output_units import restore_units, standardise_outputs
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode_rows, encoded_schema, fit, partial_statistics

NUMBER = {"kind": "number", "columns": ["x"]}


def make_features(**values: Any) -> Features:
    document = {"key": "id", "label": ["width", "height"], "task": "regression", "inputs": [NUMBER], **values}
    return Features.model_validate(document)


def fit_labels(labels: list[list[float | None]]) -> tuple[Encoder, pa.RecordBatch]:
    features = make_features()
    columns = [pa.array(range(len(labels))), pa.array([float(key) for key in range(len(labels))])]
    arrays = pa.array(labels, pa.list_(pa.float64()))
    rows = pa.RecordBatch.from_arrays([*columns, arrays], names=["id", "x", features.label_column])
    documents = [next(partial_statistics(features, [part])).column(0)[0].as_py() for part in (rows[:2], rows[2:])]
    encoder = fit(features, documents)
    return encoder, encode_rows(encoder, rows)


def test_each_label_has_units_of_its_own_and_may_be_missing():
    encoder, encoded = fit_labels([[1.0, 200.0], [3.0, None], [None, 400.0], [5.0, 600.0]])
    assert [(output.name, output.mean) for output in encoder.outputs] == [("width", 3.0), ("height", 400.0)]
    y = np.array(encoded["y"].to_pylist())
    np.testing.assert_allclose(np.nanmean(y, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(y, axis=0), 1)
    assert np.isnan(y).tolist() == [[False, False], [False, True], [True, False], [False, False]]
    assert encoded_schema(encoder, pa.int64()).field("y").type == encoded["y"].type == pa.list_(pa.float64())
    values = restore_units(encoder.outputs, y)
    np.testing.assert_allclose(values[0], [1.0, 200.0])
    np.testing.assert_allclose(standardise_outputs(encoder.outputs, values), y)
    assert Encoder.model_validate_json(encoder.model_dump_json()) == encoder


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1.0, 2.0], [2.0, float("inf")], [3.0, 3.0]], "inf is the label of 1 row"),
        ([[1.0, 2.0], [2.0, None], [3.0, 2.0]], "the label 2 in every row"),
        ([[1.0, None], [2.0, None], [3.0, None]], "no label"),
    ],
)
def test_labels_without_a_finite_spread_are_errors(labels: list[list[float | None]], message: str):
    with pytest.raises(DataUnfit, match=message) as failure:
        fit_labels(labels)
    assert "height" in failure.value.where


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label": ["width"]}, "at least two columns"),
        ({"label": ["width", "width"]}, "names a column twice"),
        ({"task": "ordinal"}, "several labels need `task: regression`"),
        ({"label": "width", "task": "multioutput"}, "has a list in `label`"),
        ({"label": ["width", "x"]}, "column 'x' is the label"),
        ({"label": ["width", "id"]}, "neither the key nor"),
        (
            {"inputs": [{"kind": "series", "columns": ["x"], "time": "at", "length": 3}]},
            "windows over time predict one label",
        ),
    ],
)
def test_impossible_labels_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        make_features(**values)


def test_one_label_is_written_as_before():
    one = Features.model_validate({"key": "id", "label": "width", "task": "regression", "inputs": [NUMBER]})
    assert "labels" not in one.model_dump()
    assert make_features().label_columns == ("width", "height")
    assert Features.model_validate(make_features().model_dump()) == make_features()
