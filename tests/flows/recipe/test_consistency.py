"""Features, split and contract of a recipe are consistent."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.flows.recipe.consistency import find_inconsistencies
from bloomery.flows.recipe.feature_checks import check_sample_rates
from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model
from tests.flows.recipe.recipe_problems import (
    BY_TIME,
    CNN,
    COLOURED,
    COLUMNS,
    CONTRACT,
    GPT,
    IMPORTED,
    MLP,
    NUMBER,
    PHOTO,
    POINTS,
    RESNET,
    RNN,
    TEXT,
    WIDE,
    find_problems,
    series,
)


@pytest.mark.parametrize(
    ("source", "model"),
    [
        (NUMBER, MLP),
        ({"kind": "number", "columns": ["age", "income"], "missing": "mean"}, MLP),
        ({"kind": "category", "columns": ["note", "age"]}, MLP),
        ({"kind": "category", "columns": ["city"], "unknown": "refuse"}, MLP),
        ({"kind": "date", "columns": ["born"], "elapsed": True, "missing": "zero"}, MLP),
        (PHOTO, CNN),
        (PHOTO, RNN),
        (COLOURED, RESNET),
        (TEXT, RNN),
        (TEXT, GPT),
        (WIDE, RNN),
        (WIDE, MLP),
        (POINTS, {"kind": "transformer"}),
        (NUMBER, {"kind": "ft_transformer"}),
        (TEXT, {"kind": "custom", "function": "mine:network"}),
        (COLOURED, {"kind": "auto"}),
        (TEXT, {"kind": "huggingface", "config": {"model_type": "bert"}}),
        *((source, IMPORTED) for source in (NUMBER, COLOURED, TEXT, WIDE, POINTS)),
    ],
    ids=str,
)
def test_consistent_inputs_have_no_problems(source, model):
    assert find_problems(source, model=model) == []


@pytest.mark.parametrize(
    ("source", "model", "sentence"),
    [
        ({"kind": "number", "columns": ["height"]}, MLP, "has no column 'height'"),
        ({"kind": "number", "columns": ["note"]}, MLP, "reads integer or number, but column 'note' is string"),
        ({"kind": "number", "columns": ["income"]}, MLP, "column 'income' is not required"),
        ({"kind": "category", "columns": ["income"]}, MLP, "column 'income' is number"),
        ({"kind": "category", "columns": ["city"]}, MLP, "set `unknown: refuse` here too"),
        ({"kind": "category", "columns": ["email"]}, MLP, "column 'email' is marked personal"),
        ({"kind": "date", "columns": ["born"], "elapsed": True}, MLP, "column 'born' is not required"),
        ({"kind": "boolean", "columns": ["age"]}, MLP, "reads boolean, but column 'age' is integer"),
        ({"kind": "image", "column": "photo", "shape": [1, 2, 3]}, CNN, "has 6 values, but the contract allows"),
        ({"kind": "image", "column": "photo", "shape": [1, 2, 2]}, MLP,
         "kind mlp reads table columns or a sequence, but an input of kind image is an image; use cnn"),
        (NUMBER, CNN, "kind cnn reads an image or audio, but an input of kind number is table columns; use mlp"),
        (NUMBER, RNN, "an input of kind number is table columns"),
        (COLOURED, RNN, "reads an image of one channel"),
        (PHOTO, GPT, "kind gpt reads text"),
        (WIDE, {"kind": "ft_transformer"}, "an input of kind sequence is a sequence"),
        (NUMBER, {"kind": "huggingface", "config": {"model_type": "bert"}}, "kind huggingface reads"),
        ({**PHOTO, "column": "holes"}, CNN, "column 'holes' may have null elements"),
        ({**POINTS, "column": "holes"}, RNN, "column 'holes' may have null elements"),
        ({**POINTS, "column": "age"}, RNN, "reads array, but column 'age' is integer"),
        ({"kind": "sequence", "columns": [["age"], ["photo"]]}, RNN, "reads integer or number, but column 'photo'"),
        ({"kind": "sequence", "columns": [["age"], ["income"]]}, RNN, "column 'income' is not required"),
        ({"kind": "audio", "column": "sound", "sample_rate": 100, "duration_s": 9, "num_mels": 1, "window_s": 0.1}, CNN,
         "column 'sound' is not required"),
        ({"kind": "text", "column": "note", "length": 4, "vocabulary_size": 300, "missing": "empty"}, MLP,
         "an input of kind text is text; use rnn"),
    ],
    ids=str,
)  # fmt: skip
def test_inconsistent_inputs_are_reported(source, model, sentence):
    (problem,) = find_problems(source, model=model)
    assert sentence in problem


def test_key_and_label_must_suit_their_roles():
    assert "is not a primaryKey" in find_problems(NUMBER, key="kind", label="city")[0]
    assert "classes are integers, strings or booleans, but column 'born' is date" in "\n".join(
        find_problems(NUMBER, label="born")
    )
    assert "features.label: column 'note' is not required" in "\n".join(find_problems(NUMBER, label="note"))


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ({"by": "group", "column": "famly"}, "has no column 'famly'"),
        ({"by": "group", "column": "note"}, "column 'note' is not required"),
        ({"by": "group", "column": "photo"}, "column 'photo' is an array"),
        ({"by": "given", "column": "age"}, "column 'age' is integer; given splits are the strings"),
        ({"by": "group", "column": "email"}, "column 'email' is not stored in plain form (drop)"),
        ({"apart": ["nobody"]}, "has no column 'nobody'"),
        ({"in_time": "born"}, "column 'born' is not required"),
    ],
    ids=str,
)
def test_a_split_needs_columns_that_every_row_has(split, sentence):
    (problem,) = find_problems(NUMBER, split=split)
    assert sentence in problem
    assert find_problems(NUMBER, split=BY_TIME) == []


def test_recordings_and_the_input_that_reads_them_have_one_sample_rate():
    sound = {"kind": "audio", "column": "sound", "sample_rate": 8000, "duration_s": 1}
    features = Features.model_validate({"key": "id", "label": "kind", "inputs": [sound]})
    sources = [DataSource(source="sounds", format="audio", sample_rate=rate) for rate in (None, 8000, 16000)]
    problems = [[*check_sample_rates(features, data)] for data in sources]
    assert problems[:2] == [[], []]
    assert "column 'sound' has 8000 samples per second, but data.sample_rate is 16000" in problems[2][0]


def test_personal_columns_are_neither_key_nor_label():
    assert "column 'email' is not stored in plain form (drop)" in find_problems(NUMBER, key="email")[-1]
    assert "column 'email' is marked personal" in find_problems(NUMBER, label="email")[0]


def test_a_personal_column_needs_a_name_that_can_be_encrypted():
    column = {**next(column for column in COLUMNS if column["name"] == "email"), "name": "email, private"}
    document = CONTRACT.document()
    document["schema"][0]["properties"].append(column)
    features = Features.model_validate({"key": "id", "label": "kind", "inputs": [NUMBER]})
    model = TypeAdapter(Model).validate_python(MLP)
    (problem,) = find_inconsistencies(features, model, Contract.model_validate(document))
    assert "column 'email, private' is personal" in problem
    assert "rename it" in problem


@pytest.mark.parametrize(
    "source",
    [
        series(),
        series(group="kind", spacing=0.5),
        series(time="id", spacing=2),
        series(columns=["income"], missing="previous", indicator=True),
    ],
    ids=str,
)
def test_a_consistent_series_has_no_problems(source):
    assert find_problems(source, split=BY_TIME) == []


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (series(columns=["income"]), "column 'income' is not required in the contract, so a window could lack a value"),
        (series(columns=["photo"]), "reads integer or number, but column 'photo' is array"),
        (series(columns=["steps"]), "column 'steps' must be one of 1, 2, by its `quality`"),
        (series(time="when"), "has no column 'when', the time of the series"),
        (series(time="born"), "column 'born' is not required"),
        (series(time="kind"), "the time of a series is integer or date or timestamp, but column 'kind' is string"),
        (series(time="id", spacing=0.5), "its spacing is an integer, not 0.5"),
        (series(group="city"), "column 'city' is not required in the contract, so the group of a row"),
        (series(group="seen2"), "has no column 'seen2', the group of the series"),
    ],
    ids=str,
)
def test_problems_of_a_series_are_reported(source, sentence):
    (problem,) = find_problems(source, split=BY_TIME)
    assert sentence in problem


def test_a_series_is_not_split_by_key_nor_read_by_a_cnn():
    assert "neighbouring rows of a series would go to different splits" in find_problems(series())[0]
    assert "is a sequence; use mlp or rnn or transformer" in find_problems(series(), split=BY_TIME, model=CNN)[0]
    assert "is personal (drop)" in "\n".join(find_problems(series(group="email"), split=BY_TIME))


def test_a_relative_network_forecasts_the_first_column_of_a_series():
    options = {"model": {**RNN, "relative": True}, "split": BY_TIME, "task": "regression"}
    assert find_problems(series(horizon=1), **options, label="age") == []
    for source in (series(horizon=1, scale="none"), series(columns=["income"], missing="previous", horizon=1)):
        assert "model.relative: it predicts how a series goes on" in "\n".join(
            find_problems(source, **options, label="age")
        )
    assert "leave it out" in "\n".join(find_problems(WIDE, **options, label="price"))


def test_a_regression_needs_a_required_numeric_label():
    assert find_problems(NUMBER, label="price", task="regression") == []
    assert find_problems({"kind": "category", "columns": ["kind"]}, label="age", task="regression") == []
    assert "use `task: regression`" in find_problems(NUMBER, label="price")[0]
    assert (
        "targets are numbers, but column 'kind' is string" in find_problems(NUMBER, label="kind", task="regression")[0]
    )
    assert "column 'income' is not required" in find_problems(NUMBER, label="income", task="regression")[0]


def test_a_forecast_may_use_its_label_as_input_and_miss_it_in_some_rows():
    source = series(columns=["income", "age"], missing="previous", horizon=1)
    assert find_problems(source, label="income", task="regression", split=BY_TIME) == []


def test_unlabelled_rows_need_an_optional_label_and_students():
    assert find_problems(NUMBER, label="note", unlabelled="teach") == []
    (problem,) = find_problems(NUMBER, label="kind", unlabelled="teach")
    assert "column 'kind' is required in the contract, so every row has a label" in problem
    for task, source in (("regression", NUMBER), ("classification", series(columns=["age"]))):
        with pytest.raises(ValidationError, match="needs a classification of rows that are not time series"):
            find_problems(source, label="income", task=task, unlabelled="teach")
    features = Features.model_validate({"key": "id", "label": "note", "inputs": [NUMBER], "unlabelled": "teach"})
    compression = Compression.model_validate({"distill": None})
    (problem,) = find_inconsistencies(features, TypeAdapter(Model).validate_python(MLP), CONTRACT, None, compression)
    assert "unlabelled rows are not used" in problem
