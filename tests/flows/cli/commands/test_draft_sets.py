"""`bloomery init` drafts sets of labels from arrays, texts with a separator and columns of 0 and 1."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import BloomeryError
from bloomery.data_contracts.monitoring import REFERENCE_FILE
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.registry_model import load_registry_model
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.evaluation.held_out import ground_truth, predicted_values, read_measured_predictions
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.promote.gates import require_better_than_baselines
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.planning.task_inference import TaskRequest
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.drafts import validate_rows

NAMES = ["blue", "dark", "green", "red"]
Drafted = tuple[Recipe, dict[str, str]]


def make_sets(num_rows: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, and the labels that they decide as 0 and 1; some rows have none."""
    x = np.random.default_rng(0).normal(size=(num_rows, 4)).round(3)
    labels = [x[:, 0] > 0.3, (x[:, 1] < 0) & (x[:, 2] < 0.3), x[:, 2] > 0.5, x[:, 3] + x[:, 0] > 0.7]
    return x, np.stack(labels, axis=1).astype(int)


def name_sets(marks: np.ndarray) -> list[list[str]]:
    return [[name for name, mark in zip(NAMES, row, strict=True) if mark] for row in marks]


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    x, _ = make_sets()
    rows = {f"x{number}": values for number, values in enumerate(x.T)} | columns
    if path.suffix == ".parquet":
        pq.write_table(pa.table(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows)
        writer.writerows(zip(*(np.asarray(values).tolist() for values in rows.values()), strict=True))
    return path


def draft(path: Path, *labels: str, task: str | None = None, separator: str | None = None) -> Drafted:
    roles = ColumnRoles(labels[0], task=TaskRequest(task), labels=labels, separator=separator)  # type: ignore[arg-type]
    result = write_drafts("mine", [str(path)], roles, UserOptions(), output=path.parent, force=True)
    return read_recipe(str(result.recipe)), dict(list_inferences(result))


def tags_of(recipe: Recipe) -> list[list[str]]:
    """The sets of the valid rows, in the order of the source."""
    rows = pq.read_table(settings().path(validate_rows(recipe).uri))
    rows = rows.take(pc.sort_indices(rows[recipe.features.key]))
    return [sorted(labels) for labels in rows[recipe.features.label].to_pylist()]


FORMS: dict[str, tuple[str, Callable[[list[list[str]]], list[Any]], str]] = {
    "arrays": ("rows.parquet", lambda sets: sets, "has arrays, so a row may have several labels"),
    "a semicolon": ("rows.csv", lambda sets: [";".join(labels) for labels in sets], "';' separates the labels of tags"),
    "a bar": ("rows.csv", lambda sets: [" | ".join(labels) for labels in sets], "'|' separates the labels of tags"),
    "commas": ("rows.csv", lambda sets: [", ".join(labels) for labels in sets], "',' separates the labels of tags"),
    "json": ("rows.csv", lambda sets: [json.dumps(labels) for labels in sets], "are arrays in brackets"),
    "python": ("rows.csv", lambda sets: [str(labels) for labels in sets], "are arrays in brackets"),
}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_sets_is_inferred_and_read_as_the_same_sets(form: str, tmp_path: Path) -> None:
    name, write, reason = FORMS[form]
    sets = name_sets(make_sets()[1])
    recipe, lines = draft(write_table(tmp_path / name, {"tags": write(sets)}), "tags")
    assert (recipe.features.task, recipe.features.label) == ("multilabel", "tags")
    assert reason in lines["task"]
    assert lines["label"].startswith(f"tags: 4 labels, {sets.count([])} rows have none")
    assert tags_of(recipe) == sets
    assert recipe.contract.column("tags").logical_type == "array"  # type: ignore[union-attr]


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("labels", [NAMES, [",".join(NAMES)]])
def test_columns_of_0_and_1_are_one_column_of_sets(labels: list[str], tmp_path: Path) -> None:
    marks = make_sets()[1]
    path = write_table(tmp_path / "rows.csv", dict(zip(NAMES, marks.T, strict=True)))
    recipe, lines = draft(path, *labels)
    assert (recipe.features.label, recipe.features.task) == ("labels", "multilabel")
    assert "4 columns are named" in lines["task"]
    assert tags_of(recipe) == name_sets(marks)
    assert not set(NAMES) & {column for source in recipe.features.inputs for column in source.columns}


@pytest.mark.usefixtures("home")
def test_rare_labels_are_named_and_not_learnt(tmp_path: Path) -> None:
    sets = name_sets(make_sets()[1])
    with_rare = [[*labels, "odd"] if number in (3, 77) else labels for number, labels in enumerate(sets)]
    recipe, lines = draft(write_table(tmp_path / "rows.parquet", {"tags": with_rare}), "tags")
    assert "without 1 that fewer than 10 rows have (odd)" in lines["label"]
    assert tags_of(recipe) == sets


@pytest.mark.usefixtures("home")
def test_rows_without_an_array_are_quarantined_and_rows_with_an_empty_one_are_not(tmp_path: Path) -> None:
    sets = name_sets(make_sets()[1])
    with_gaps = [None if number % 5 == 0 else labels for number, labels in enumerate(sets)]
    path = write_table(tmp_path / "rows.parquet", {"tags": pa.array(with_gaps, pa.list_(pa.string()))})
    recipe, lines = draft(path, "tags")
    kept = [labels for labels in with_gaps if labels is not None]
    assert tags_of(recipe) == kept
    assert f"{kept.count([])} rows have none" in lines["label"]


@pytest.mark.usefixtures("home")
def test_texts_with_commas_are_classes_unless_sets_are_requested(tmp_path: Path) -> None:
    towns = ["Paris, France", "Lyon, France", "Rome, Italy"]
    path = write_table(tmp_path / "rows.csv", {"town": [towns[number % 3] for number in range(150)]})
    recipe, _ = draft(path, "town")
    assert recipe.features.task == "classification"
    recipe, lines = draft(path, "town", task="multilabel")
    assert recipe.features.task == "multilabel"
    assert lines["label"].startswith("town: 5 labels")
    recipe, _ = draft(path, "town", separator=", ")
    assert recipe.features.task == "multilabel"


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any], str]] = {
    "no separator": ({"a": ["x", "y", "z"] * 50}, ("a",), {"task": "multilabel"}, "none of its texts contains ';' or"),
    "another separator": ({"a": ["x;y", "y"] * 75}, ("a",), {"separator": "/"}, "none of its texts contains '/'"),
    "quantities": (
        {"a": [5, 7] * 75, "b": [0, 1] * 75},
        ("a", "b"),
        {"task": "multilabel"},
        "columns that are not 0 or 1",
    ),
    "one frequent label": ({"a": [1] * 150, "b": [0] * 149 + [1]}, ("a", "b"), {}, "1 of them in at least 10 rows"),
    "another task": ({"a": [0, 1] * 75, "b": [1] * 150}, ("a", "b"), {"task": "ordinal"}, "the task is ordinal"),
    "no such column": ({"a": [0, 1] * 75}, ("a", "none"), {}, "there is no column 'none'"),
    "a number": ({"a": [0.5, 1.5] * 75}, ("a",), {"task": "multilabel"}, "its type is number"),
}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_set_is_an_error_with_a_remedy(case: str, tmp_path: Path) -> None:
    columns, labels, options, message = WRONG[case]
    with pytest.raises(BloomeryError, match=message) as failure:
        draft(write_table(tmp_path / "rows.csv", columns), *labels, **options)
    assert failure.value.remedy


@pytest.mark.nightly  # daily tests take each of its steps alone, and other tasks from draft to release
@pytest.mark.usefixtures("home")
def test_an_unedited_draft_of_sets_is_trained_compressed_packaged_and_served(tmp_path: Path) -> None:
    from bloomery.tasks.choose.stage import choose
    from bloomery.tasks.compress.stage import compress
    from bloomery.tasks.package.stage import package
    from bloomery.tasks.prepare.stage import prepare
    from bloomery.tasks.train.stage import train

    x, marks = make_sets()
    recipe, _ = draft(write_table(tmp_path / "rows.parquet", {"tags": name_sets(marks)}), "tags")
    dataset = prepare(validate_rows(recipe), recipe.features, recipe.engine_settings)
    choice = choose(compress(train(dataset, recipe.model, recipe.training), recipe.compression), recipe.budget)
    bento = package(choice, recipe.name, recipe.document)
    require_better_than_baselines(bento, recipe.gates)
    assert choice.candidate.score.value > 0.8
    assert {recall.name for recall in choice.candidate.recalls} == set(NAMES)
    assert {baseline.name.split()[0] for baseline in choice.candidates.trained.baselines} == {
        "most",
        "logistic",
        "boosted",
    }
    others = [candidate for candidate in choice.candidates.candidates if candidate.disagreements]
    assert all(compared.num_changed is not None for compared in others[0].disagreements)

    artifacts = artifacts_folder(bento.tag)
    version = LoadedVersion(artifacts)
    table = read_measured_predictions(choice)
    keys = table[recipe.features.key].to_numpy()
    rows = pd.DataFrame(x[keys], columns=[f"x{number}" for number in range(4)])
    predictions = load_registry_model(artifacts).predict(rows)
    shares = np.array([list(row.values()) for row in predictions["probabilities"]])
    assert shares == pytest.approx(predicted_values(dataset, table), abs=1e-3)
    assert list(predictions["probabilities"][0]) == [str(name) for name in version.encoder.classes] == NAMES
    expected = [[name for name, share in zip(NAMES, row, strict=True) if share >= 0.5] for row in shares]
    assert predictions["labels"].tolist() == expected
    assert ground_truth(dataset, table).truth.tolist() == marks[keys].tolist()
    logged = version.predictions_table(shares)
    assert logged.column_names == ["labels", "probabilities"]
    assert logged["labels"].to_pylist() == expected
    reference = json.loads((artifacts / REFERENCE_FILE).read_text())
    num_labels = sum(max(len(labels), 1) for labels in expected)  # a row without labels counts as one without a value
    assert (reference["task"], reference["predictions"]["num_rows"]) == ("multilabel", num_labels)
