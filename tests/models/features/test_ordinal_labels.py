"""The classes of an ordinal task are in their order, not in that of their names."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode_rows, fit, partial_statistics

ORDER = ["low", "medium", "high"]


def make_features(**values: Any) -> Features:
    document = {"key": "id", "label": "risk", "inputs": [{"kind": "number", "columns": ["x"]}], **values}
    return Features.model_validate(document)


def fit_labels(labels: list[Any], **values: Any) -> tuple[Encoder, list[int]]:
    rows = pa.RecordBatch.from_pydict(
        {"id": range(len(labels)), "x": list(map(float, range(len(labels)))), "risk": labels}
    )
    features = make_features(**values)
    encoder = fit(features, next(partial_statistics(features, [rows])).column(0).to_pylist())
    return encoder, encode_rows(encoder, rows)["y"].to_pylist()


def test_texts_are_encoded_by_their_rank():
    encoder, ranks = fit_labels(["medium", "high", "low", "high"], task="ordinal", order=ORDER)
    assert encoder.classes == ("low", "medium", "high")
    assert ranks == [1, 2, 0, 2]


def test_integers_order_themselves_unless_an_order_is_given():
    assert fit_labels([10, 2, 3], task="ordinal")[0].classes == (2, 3, 10)
    assert fit_labels([10, 2, 3], task="ordinal", order=[10, 3, 2])[1] == [0, 2, 1]


def test_other_tasks_are_written_as_before():
    encoder, _ = fit_labels(["b", "a"])
    assert "order" not in encoder.model_dump_json()
    assert "order" not in make_features().model_dump()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["low", "medium", "high", "extreme"], "classes that the order does not name: extreme"),
        (["low", "medium"], "no row of classes in the order: high"),
    ],
)
def test_an_order_of_other_classes_is_an_error(labels: list[str], message: str):
    with pytest.raises(DataUnfit, match=message) as failure:
        fit_labels(labels, task="ordinal", order=ORDER)
    assert "medium" in failure.value.remedy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"order": ORDER}, "the task is classification: set `task: ordinal`"),
        ({"task": "ordinal", "order": ["a", "b", "a"]}, "names a class twice: a"),
        ({"task": "ordinal", "order": ["a"]}, "at least two classes"),
        ({"task": "ordinal", "order": ["a", 1]}, "all of them integers or all of them texts"),
    ],
)
def test_an_impossible_order_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        make_features(**values)
