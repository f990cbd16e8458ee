"""Features, network, training and contract of a recipe are consistent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.flows.recipe.consistency import find_inconsistencies
from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training

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
    {
        "name": "holes",
        "logicalType": "array",
        "required": True,
        "logicalTypeOptions": {"minItems": 4, "maxItems": 4},
        "items": {"logicalType": "number", "required": False},
    },
    {"name": "price", "logicalType": "number", "required": True},
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
MLP, CNN, RNN, RESNET, GPT = ({"kind": kind} for kind in ("mlp", "cnn", "rnn", "resnet", "gpt"))
IMPORTED = {"kind": "imported", "path": "network.onnx"}
NUMBER = {"kind": "number", "columns": ["age"]}
PHOTO = {"kind": "image", "column": "photo", "shape": [1, 2, 2]}
COLOURED = {"kind": "image", "column": "photo", "shape": [4, 1, 1]}
TEXT = {"kind": "text", "column": "note", "length": 4, "vocabulary_size": 300, "missing": "empty"}
WIDE = {"kind": "sequence", "columns": [["age"], ["steps"]]}
POINTS = {"kind": "sequence", "column": "photo", "length": 2, "width": 2}
BY_TIME = {"by": "time", "column": "seen"}


def find_problems(
    *inputs: dict[str, Any],
    model: dict[str, str] = MLP,
    key: str = "id",
    label: str = "kind",
    split: dict[str, Any] | None = None,
    task: str = "classification",
    training: dict[str, Any] | None = None,
    candidates: list[dict[str, Any]] | None = None,
    search: bool = False,
    extra_formats: Sequence[str] = (),
    distill: dict[str, float] | None = None,
    unlabelled: str = "refuse",
) -> list[str]:
    document = {
        "key": key,
        "label": label,
        "task": task,
        "inputs": inputs,
        "split": split or {},
        "unlabelled": unlabelled,
    }
    features = Features.model_validate(document)
    epochs = {} if model == IMPORTED else {"epochs": 1}
    training_options = None if training is None else Training.model_validate({**epochs, **training})
    distillation = {} if distill is None else {"distill": distill}
    options = {"candidates": candidates, "search": search, "extra_formats": extra_formats, **distillation}
    compression = Compression.model_validate(options)
    return list(
        find_inconsistencies(
            features, TypeAdapter(Model).validate_python(model), CONTRACT, training_options, compression
        )
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
        (TEXT, {"kind": "huggingface", "checkpoint": "folder"}),
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
        (NUMBER, {"kind": "huggingface", "checkpoint": "folder"}, "kind huggingface reads"),
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
    assert "classes are integers or strings, but column 'born' is date" in "\n".join(
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


def test_personal_columns_are_neither_key_nor_label():
    assert "column 'email' is not stored in plain form (drop)" in find_problems(NUMBER, key="email")[-1]
    assert "column 'email' is marked personal" in find_problems(NUMBER, label="email")[0]


def series(**options: Any) -> dict[str, Any]:
    return {"kind": "series", "columns": ["age"], "time": "seen", "length": 3, **options}


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


@pytest.mark.parametrize(
    ("source", "model", "task", "training", "sentence"),
    [
        (NUMBER, MLP, "classification", {"slices": ["nobody"]}, "training.slices: contract people has no column"),
        (NUMBER, MLP, "classification", {"slices": ["email"]}, "column 'email' is not stored in plain form (drop)"),
        (NUMBER, MLP, "classification", {"slices": ["photo"]}, "column 'photo' is an array"),
        (NUMBER, MLP, "classification", {"loss": "huber"}, "training.loss: huber is for a regression"),
        (NUMBER, MLP, "regression", {"class_weights": "balanced"}, "training.class_weights: a regression has no"),
        (NUMBER, MLP, "regression", {"label_smoothing": 0.1}, "training.label_smoothing: a regression has no"),
        (NUMBER, MLP, "classification", {"augment": {"flip": True}}, "training.augment.flip applies to an image"),
        (PHOTO, CNN, "classification", {"augment": {"mask": 0.1}}, "training.augment.mask applies to audio"),
        (TEXT, RNN, "classification", {"augment": {"mixup": 0.2}}, "but an encoded row is text"),
        ({"kind": "category", "columns": ["kind"], "encoding": "index"}, MLP, "classification",
         {"augment": {"mixup": 0.2}}, "cannot be interpolated"),
        (NUMBER, MLP, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}}, "set `norm: none`"),
        (NUMBER, {**MLP, "norm": "none", "periodic": {}}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}},
         "frequencies of `periodic`"),
        (NUMBER, {**MLP, "norm": "none"}, "classification",
         {"privacy": {"epsilon": 1, "delta": 1e-5}, "search": {"trials": 2}}, "training.search: every trial"),
        (PHOTO, CNN, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}}, "a cnn normalises over the rows"),
        (NUMBER, {**MLP, "norm": "none"}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}, "ema": 0.9},
         "training.ema is not supported by private training"),
        (NUMBER, {"kind": "auto"}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}}, "name a network"),
        (NUMBER, {**MLP, "norm": "none"}, "classification", {"privacy": {"epsilon": 1, "delta": 1e-5}, "devices": 2},
         "training.devices is not supported by private training"),
    ],
    ids=str,
)  # fmt: skip
def test_inconsistent_training_options_are_reported(source, model, task, training, sentence):
    label = "city" if task == "classification" else "price"
    label_problems = find_problems(source, model=model, label=label, task=task)
    (problem,) = [text for text in find_problems(source, model=model, label=label, task=task, training=training)
                  if text not in label_problems]  # fmt: skip
    assert sentence in problem


@pytest.mark.parametrize(
    ("source", "model", "training"),
    [
        (NUMBER, MLP, {"slices": ["city", "age"], "augment": {"mixup": 0.2}}),
        (PHOTO, CNN, {"label_smoothing": 0.1, "augment": {"flip": True, "shift": 1}}),
        (TEXT, RNN, {"class_weights": "balanced", "augment": {"drop_tokens": 0.1}}),
        (NUMBER, {**MLP, "norm": "none"}, {"privacy": {"epsilon": 1, "delta": 1e-5}}),
    ],
    ids=str,
)
def test_consistent_training_options_have_no_problems(source, model, training):
    assert find_problems(source, model=model, training=training) == []


@pytest.mark.parametrize(
    "training",
    [
        {"epochs": 3},
        {"epochs": 3, "search": {"trials": 2}},
        {"privacy": {"epsilon": 1, "delta": 1e-5}},
        {"start_from": {"network": "digits@champion"}},
        {"devices": 2},
        {"nodes": 2},
        {"learning_rate": 0.1},
        {"class_weights": "balanced"},
        {"augment": {"flip": True}},
    ],
    ids=str,
)
def test_an_imported_network_is_not_trained(training):
    problems = find_problems(NUMBER, model=IMPORTED, training=training)
    assert [problem.split(":")[0] for problem in problems] == [f"training.{name}" for name in training]
    assert all("an imported network is already trained" in problem for problem in problems)


def test_evaluation_options_apply_to_an_imported_network():
    options = {"slices": ["city"], "seed": 3, "num_threads": 2, "explain": {"rows": 2, "method": "lime"}}
    assert find_problems(NUMBER, model=IMPORTED, training=options) == []
    assert find_problems(NUMBER, model=IMPORTED, training={"explain": None}) == []
    (gradients,) = find_problems(NUMBER, model=IMPORTED, training={"explain": {"method": "integrated_gradients"}})
    assert "training.explain.method: an imported network has no gradients" in gradients
    (slices,) = find_problems(NUMBER, model=IMPORTED, training={"slices": ["nobody"]})
    assert "training.slices" in slices


@pytest.mark.parametrize("model", [IMPORTED, {"kind": "custom", "function": "mine:network"}], ids=str)
def test_imported_and_custom_networks_are_not_pruned(model):
    candidates = [{"name": "fp32"}, {"name": "small", "prune": 0.5}]
    (problem,) = find_problems(NUMBER, model=model, candidates=candidates)
    assert "compression.candidates: small cannot be pruned" in problem
    assert find_problems(NUMBER, model=model, candidates=candidates[:1]) == []
    assert find_problems(NUMBER, model=MLP, candidates=candidates) == []


@pytest.mark.parametrize(
    ("model", "candidate", "problem"),
    [
        (MLP, {"prune": {"ratio": 0.5, "structures": ["heads"]}}, "a mlp has no heads to remove"),
        (MLP, {"student": {"model": CNN}}, "one's student: model: a network of kind cnn reads an image"),
        (MLP, {"student": {"model": {"kind": "auto"}}}, "has a student of kind auto"),
        (
            MLP,
            {"student": {"model": RNN}, "prune": {"ratio": 0.5, "scope": "global"}},
            "share their width in the config",
        ),
        (IMPORTED, {"factorize": 0.5}, "cannot be factorised: an imported network is not changed"),
    ],
)
def test_impossible_candidates_are_reported_before_anything_runs(model, candidate, problem):
    problems = find_problems(NUMBER, model=model, candidates=[{"name": "fp32"}, {"name": "one", **candidate}])
    assert any(problem in sentence for sentence in problems), problems


def test_an_imported_network_has_no_extra_formats_but_its_student_has():
    student = {"name": "one", "student": {"model": MLP}}
    for candidates in (None, [{"name": "fp32"}, student | {"quantize": "static"}]):
        (problem,) = find_problems(NUMBER, model=IMPORTED, extra_formats=["pt2"], candidates=candidates)
        assert "compression.extra_formats: an imported network is not a PyTorch network" in problem
    assert find_problems(NUMBER, model=IMPORTED, extra_formats=["pt2"], candidates=[{"name": "fp32"}, student]) == []
    assert find_problems(NUMBER, model=MLP, extra_formats=["pt2", "litert"]) == []


def test_an_imported_network_has_no_candidate_search_but_its_student_may_be_pruned():
    (problem,) = find_problems(NUMBER, model=IMPORTED, search=True)
    assert "compression.search: an imported network cannot be pruned" in problem
    assert find_problems(NUMBER, model=MLP, search=True) == []
    student = {"name": "one", "student": {"model": MLP}, "prune": 0.5}
    assert find_problems(NUMBER, model=IMPORTED, candidates=[{"name": "fp32"}, student]) == []


def test_impossible_distillation_is_reported_before_anything_runs():
    candidates = [{"name": "fp32"}, {"name": "one", "student": {"model": MLP}}]
    for weight in ("feature_weight", "attention_weight"):
        (problem,) = find_problems(NUMBER, model=IMPORTED, candidates=candidates, distill={weight: 1})
        assert "compression.distill: one cannot be distilled from the trained network:" in problem
        assert find_problems(NUMBER, model=IMPORTED, candidates=candidates[:1], distill={weight: 1}) == []
    (problem,) = find_problems(NUMBER, model=MLP, distill={"attention_weight": 1})
    assert "a pruned network cannot be distilled from the trained network: a network of kind mlp has no know" in problem
    assert find_problems(NUMBER, model=MLP, distill={"feature_weight": 1}) == []


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
