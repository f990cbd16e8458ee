"""`bloomery init --task regression --label width,height` drafts one network for several numbers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bloomery.data_contracts.errors import BloomeryError
from bloomery.deployments.endpoint.asgi.openapi import openapi_document
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.explain import Explainer
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.registry_model import load_registry_model
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.cli.display import _describe_prediction
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.evaluation.held_out import read_measured_predictions
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.planning.task_inference import TaskRequest
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.drafts import validate_rows
from tests.flows.cli.commands.test_draft_sets import make_sets, write_table
from tests.flows.cli.commands.test_draft_tasks import split_rows

WIDTH = (make_sets()[0][:, 0] * 3 + 10).round(2)
HEIGHT = (make_sets()[0][:, 1] * 100 + 500).round(1)


def write_drafts_of(folder: Path, labels: tuple[str, ...], columns: dict[str, Any], task: Any = "regression") -> Any:
    path = write_table(folder / "rows.csv", columns)
    roles = ColumnRoles(labels[0], task=TaskRequest(task), labels=labels)
    return write_drafts("mine", [str(path)], roles, UserOptions(), output=folder, force=True)


@pytest.mark.usefixtures("home")
def test_a_draft_of_two_numbers_reads_both_and_splits_rows_with_either(tmp_path: Path) -> None:
    height = ["" if number % 4 == 0 else str(value) for number, value in enumerate(HEIGHT)]
    result = write_drafts_of(tmp_path, ("width,height",), {"width": WIDTH, "height": height})
    recipe = read_recipe(str(result.recipe))
    assert (recipe.features.labels, recipe.features.task) == (("width", "height"), "multioutput")
    assert (recipe.model.kind, recipe.training.score.name if recipe.training.score else "mean_rmse") == (
        "tabm",
        "mean_rmse",
    )
    assert [value for name, value in list_inferences(result) if name == "label"][1].startswith("height: numbers")
    inputs = {column for source in recipe.features.inputs for column in source.columns}
    assert not inputs & {"width", "height"}
    rows = split_rows(recipe)
    labels = {row[recipe.features.key]: row[recipe.features.label_column] for row in rows}
    assert len(labels) == len(WIDTH)
    assert sorted(width for width, _ in labels.values()) == pytest.approx(sorted(WIDTH))
    assert sum(height is None for _, height in labels.values()) == sum(not text for text in height)


@pytest.mark.usefixtures("home")
def test_rows_without_any_label_are_left_out(tmp_path: Path) -> None:
    is_empty = np.arange(len(WIDTH)) % 5 == 0
    columns = {
        "width": ["" if empty else str(value) for empty, value in zip(is_empty, WIDTH, strict=True)],
        "height": ["" if empty else str(value) for empty, value in zip(is_empty, HEIGHT, strict=True)],
    }
    recipe = read_recipe(str(write_drafts_of(tmp_path, ("width", "height"), columns).recipe))
    assert len(split_rows(recipe)) == np.count_nonzero(~is_empty)


@pytest.mark.usefixtures("home")
def test_a_draft_of_two_labels_with_classes_reads_both(tmp_path: Path) -> None:
    colour = np.array(["red", "blue", "green"])[np.arange(len(WIDTH)) % 3]
    size = ["" if number % 4 == 0 else str(number % 2 + 1) for number in range(len(WIDTH))]
    result = write_drafts_of(tmp_path, ("colour,size",), {"colour": colour, "size": size}, None)
    recipe = read_recipe(str(result.recipe))
    assert (recipe.features.labels, recipe.features.task) == (("colour", "size"), "multitask")
    assert recipe.model.kind == "tabm"
    assert [value for name, value in list_inferences(result) if name == "label"][1].startswith("size: 2 classes")
    labels = [row[recipe.features.label_column] for row in split_rows(recipe)]
    assert sorted(label for label, _ in labels) == sorted(colour.tolist())
    assert {label for _, label in labels} == {"1", "2", None}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"width": WIDTH, "height": ["tall", "small", "wide"] * 50}, "column height cannot be a quantity"),
        ({"width": WIDTH, "height": [1.5] * 150}, "all its numbers are equal"),
    ],
)
def test_labels_that_are_no_numbers_are_errors(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BloomeryError, match=message):
        write_drafts_of(tmp_path, ("width", "height"), columns)


@pytest.mark.nightly  # daily tests take each of its steps alone, and other tasks from draft to release
@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("task", ["regression", "classification", "ordinal"])
def test_an_unedited_draft_is_trained_compressed_packaged_and_served(task: str, tmp_path: Path) -> None:
    from bloomery.tasks.choose.stage import choose
    from bloomery.tasks.compress.stage import compress
    from bloomery.tasks.package.stage import package
    from bloomery.tasks.prepare.stage import prepare
    from bloomery.tasks.train.stage import train

    x = make_sets()[0]
    colour = np.array(["blue", "green", "red"])[np.digitize(x[:, 0], [-0.5, 0.5])]
    columns: dict[str, dict[str, Any]] = {
        "regression": {"width": WIDTH, "height": HEIGHT},
        "classification": {"colour": colour, "size": (x[:, 1] > 0) + 1},
        "ordinal": {"size": np.digitize(x[:, 0], [-0.5, 0.5]) + 1},
    }
    result = write_drafts_of(tmp_path, tuple(columns[task]), columns[task], task)
    recipe = read_recipe(str(result.recipe))
    dataset = prepare(validate_rows(recipe), recipe.features, recipe.engine_settings)
    choice = choose(compress(train(dataset, recipe.model, recipe.training), recipe.compression), recipe.budget)
    bento = package(choice, recipe.name, recipe.document)
    artifacts = artifacts_folder(bento.tag)
    version = LoadedVersion(artifacts)  # compares its predictions with the measured ones
    table = read_measured_predictions(choice)
    rows = pd.DataFrame(
        x[table[recipe.features.key].to_numpy()], columns=[f"x{number}" for number in range(x.shape[1])]
    )
    predictions = load_registry_model(artifacts).predict(rows)
    schema = openapi_document(version, "off", has_card=False)["components"]["schemas"]["Prediction"]
    if task == "classification":  # a column for each label
        assert set(predictions.columns) == {"colour", "size", "colour_probabilities", "size_probabilities"}
        predictions = pd.DataFrame({"classes": predictions[["colour", "size"]].to_dict("records"), "probabilities": 0})
    assert set(schema["required"]) == set(predictions.columns)
    fields = {"regression": "values", "classification": "classes", "ordinal": "label"}
    expected = table["prediction"].to_pylist()
    for prediction, measured in zip(predictions[fields[task]], expected, strict=True):
        values = list(prediction.values()) if isinstance(prediction, dict) else [prediction]
        measured = measured if isinstance(measured, list) else [measured]
        if task == "regression":
            assert values == pytest.approx(measured, rel=1e-3, abs=1e-2)
        else:
            assert list(map(str, values)) == list(map(str, measured))
    _require_explanations(version, {"regression": "height", "classification": "size"}.get(task, "2"))
    logged = version.predictions_table(version.predict_encoded(version.background))
    assert logged.num_rows == len(version.background)
    assert logged.column_names[0] == fields[task]


def _require_explanations(version: LoadedVersion, label: str) -> None:
    rows = version.row_check.to_columns(version.row_check.parse_json(version.example_request)).batch[:2]
    explanations = asyncio.run(Explainer(Limits()).explain(version, rows, f"label={label}".encode()))
    for explanation in explanations:
        assert str(explanation["label"]) == label
        total = explanation["base_value"] + sum(explanation["contributions"].values())
        assert total == pytest.approx(explanation["output"], rel=1e-3, abs=1e-3)


def test_predictions_of_several_labels_are_described() -> None:
    numbers = {"values": {"width": 1.25, "height": 2096.4}, "truth": [1.5, None]}
    assert _describe_prediction(numbers) == "[bold]width 1.25, height 2096[/]; the true values are 1.5, unknown"
    classes = {"classes": {"colour": "red", "size": 3}, "truth": ["red", None]}
    assert _describe_prediction(classes) == "[bold]colour red, size 3[/]; the true classes are red, unknown"


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("columns", "task"),
    [
        ({"width": WIDTH, "height": HEIGHT}, "multioutput"),
        ({"is_red": np.arange(150) % 2, "is_tall": np.arange(150) // 75}, "multilabel"),
        ({"colour": ["red", "blue"] * 75, "is_tall": np.arange(150) // 75}, "multitask"),
    ],
)
def test_the_task_of_several_labels_is_inferred(columns: dict[str, Any], task: str, tmp_path: Path) -> None:
    result = write_drafts_of(tmp_path, tuple(columns), columns, None)
    assert read_recipe(str(result.recipe)).features.task == task


@pytest.mark.usefixtures("home")
def test_a_number_beside_a_class_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BloomeryError, match="width is a number, and colour has classes"):
        write_drafts_of(tmp_path, ("width", "colour"), {"width": WIDTH, "colour": ["red", "blue"] * 75}, None)
