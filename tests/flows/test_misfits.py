"""What features, network and contract ask of each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from data_contracts.contract import Contract
from flows.misfits import misfits
from models.config import Features, Model

COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "logicalType": "integer", "primaryKey": True},
    {"name": "kind", "logicalType": "string", "required": True},
    {"name": "age", "logicalType": "integer", "required": True},
    {"name": "income", "logicalType": "number"},
    {"name": "city", "logicalType": "string", "customProperties": [{"property": "unknownCategory", "value": "refuse"}]},
    {"name": "note", "logicalType": "string"},
    {"name": "born", "logicalType": "date"},
    {"name": "email", "logicalType": "string", "customProperties": [{"property": "personal", "value": True}]},
    {
        "name": "photo",
        "logicalType": "array",
        "required": True,
        "logicalTypeOptions": {"minItems": 4, "maxItems": 4},
        "items": {"logicalType": "integer"},
    },
    {"name": "seen", "logicalType": "timestamp", "required": True},
    {
        "name": "steps",
        "logicalType": "integer",
        "required": True,
        "quality": [{"metric": "invalidValues", "arguments": {"validValues": [1, 2]}, "mustBe": 0}],
    },
    {"name": "sound", "logicalType": "array", "items": {"logicalType": "number"}},
]
CONTRACT = Contract.model_validate(
    {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "people",
        "name": "people",
        "version": "1.0.0",
        "status": "draft",
        "schema": [{"name": "people", "properties": COLUMNS}],
    }
)
MLP, CNN = ({"kind": kind} for kind in ("mlp", "cnn"))
NUMBER = {"kind": "number", "columns": ["age"]}
BY_TIME = {"by": "time", "column": "seen"}


def found(
    *inputs: dict[str, Any],
    model: dict[str, str] = MLP,
    key: str = "id",
    label: str = "kind",
    split: dict[str, Any] | None = None,
) -> list[str]:
    stated = {"key": key, "label": label, "inputs": inputs, "split": split or {}}
    features = Features.model_validate(stated)
    return list(misfits(features, TypeAdapter(Model).validate_python(model), CONTRACT))


@pytest.mark.parametrize(
    ("source", "model"),
    [
        (NUMBER, MLP),
        ({"kind": "number", "columns": ["age", "income"], "missing": "mean"}, MLP),
        ({"kind": "category", "columns": ["note", "age"]}, MLP),
        ({"kind": "category", "columns": ["city"], "unknown": "refuse"}, MLP),
        ({"kind": "date", "columns": ["born"], "elapsed": True, "missing": "zero"}, MLP),
        ({"kind": "image", "column": "photo", "shape": [1, 2, 2]}, CNN),
    ],
    ids=str,
)
def test_what_fits_is_not_complained_about(source, model):
    assert found(source, model=model) == []


@pytest.mark.parametrize(
    ("source", "model", "sentence"),
    [
        ({"kind": "number", "columns": ["height"]}, MLP, "has no column 'height'"),
        ({"kind": "number", "columns": ["note"]}, MLP, "reads integer or number, and column 'note' is string"),
        ({"kind": "number", "columns": ["income"]}, MLP, "column 'income' is not required"),
        ({"kind": "category", "columns": ["income"]}, MLP, "column 'income' is number"),
        ({"kind": "category", "columns": ["city"]}, MLP, "say `unknown: refuse` here too"),
        ({"kind": "category", "columns": ["email"]}, MLP, "column 'email' is marked personal"),
        ({"kind": "date", "columns": ["born"], "elapsed": True}, MLP, "column 'born' is not required"),
        ({"kind": "boolean", "columns": ["age"]}, MLP, "reads boolean, and column 'age' is integer"),
        ({"kind": "image", "column": "photo", "shape": [1, 2, 3]}, CNN, "has 6 values, but the contract lets"),
        ({"kind": "image", "column": "photo", "shape": [1, 2, 2]}, MLP, "an mlp reads a flat vector"),
        (NUMBER, CNN, "a cnn reads an image or audio"),
        ({"kind": "audio", "column": "sound", "sample_rate": 100, "duration_s": 9, "num_mels": 1, "window_s": 0.1}, CNN,
         "column 'sound' is not required"),
        ({"kind": "text", "column": "note", "length": 4, "vocabulary_size": 300, "missing": "empty"}, MLP,
         "no network of kind mlp reads text"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_named(source, model, sentence):
    (problem,) = found(source, model=model)
    assert sentence in problem


def test_key_and_label_must_be_what_they_are_used_for():
    assert "is not a primaryKey" in found(NUMBER, key="kind", label="city")[0]
    assert "classes are integers or strings, and column 'born' is date" in "\n".join(found(NUMBER, label="born"))
    assert "features.label: column 'note' is not required" in "\n".join(found(NUMBER, label="note"))


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ({"by": "group", "column": "famly"}, "has no column 'famly'"),
        ({"by": "group", "column": "note"}, "column 'note' is not required"),
        ({"by": "group", "column": "photo"}, "column 'photo' is an array"),
        ({"by": "given", "column": "age"}, "column 'age' is integer; parts are given as the texts"),
        ({"by": "group", "column": "email"}, "column 'email' is not kept in clear (drop)"),
        ({"apart": ["nobody"]}, "has no column 'nobody'"),
        ({"in_time": "born"}, "column 'born' is not required"),
    ],
    ids=str,
)
def test_a_split_needs_columns_that_every_row_has(split, sentence):
    (problem,) = found(NUMBER, split=split)
    assert sentence in problem
    assert found(NUMBER, split=BY_TIME) == []


def test_what_is_not_kept_of_people_is_neither_key_nor_label():
    assert "column 'email' is not kept in clear (drop)" in found(NUMBER, key="email")[-1]
    assert "column 'email' is marked personal" in found(NUMBER, label="email")[0]


def series(**stated: Any) -> dict[str, Any]:
    return {"kind": "series", "columns": ["age"], "time": "seen", "length": 3, **stated}


@pytest.mark.parametrize("source", [series(), series(group="kind", spacing=0.5), series(time="id", spacing=2)], ids=str)
def test_a_series_that_fits_is_not_complained_about(source):
    assert found(source, split=BY_TIME) == []


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (series(columns=["income"]), "column 'income' is not required in the contract, so a window could lack a value"),
        (series(columns=["photo"]), "reads integer or number, and column 'photo' is array"),
        (series(columns=["steps"]), "column 'steps' must be one of 1, 2, as its quality says"),
        (series(time="when"), "has no column 'when', the series' time"),
        (series(time="born"), "column 'born' is not required"),
        (series(time="kind"), "the time of a series is integer or date or timestamp, and column 'kind' is string"),
        (series(time="id", spacing=0.5), "its spacing is a whole number, not 0.5"),
        (series(group="city"), "column 'city' is not required in the contract, so a row's group"),
        (series(group="seen2"), "has no column 'seen2', the series' group"),
    ],
    ids=str,
)
def test_what_a_series_lacks_is_named(source, sentence):
    (problem,) = found(source, split=BY_TIME)
    assert sentence in problem


def test_a_series_is_not_split_by_key_nor_read_by_a_cnn():
    assert "rows that follow each other in a series go to different parts" in found(series())[0]
    assert "gives windows of numbers; use an mlp" in found(series(), split=BY_TIME, model=CNN)[0]
    assert "is personal, to drop" in "\n".join(found(series(group="email"), split=BY_TIME))
