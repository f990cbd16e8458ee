"""A regression from draft to release: trained, compressed, promoted, served and shown."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PREDICT = """
import json, sys
from bloomery.tasks.bentos.bento_server import post_rows, serve_bento
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder

apply_engine_environment()
require_state_folder()
with serve_bento(sys.argv[1]) as client:
    print(json.dumps(post_rows(client, json.load(sys.stdin)).json()))
"""
Bloomery = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, forked_bloomery: Bloomery) -> Path:
    """A recipe drafted by `bloomery init`, with a slice column."""
    folder = tmp_path_factory.mktemp("diabetes")
    arguments = ("--data", "sklearn:diabetes", "--label", "target", "--output", str(folder))
    completed = forked_bloomery(folder / "home", "init", "diabetes", *arguments, "--json")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    path = folder / "diabetes.yaml"
    document = yaml.safe_load(path.read_text())
    document["training"]["slices"] = ["sex"]
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture(scope="module")
def table(recipe: Path, forked_bloomery: Bloomery) -> str:
    """The output of `bloomery run`."""
    run = forked_bloomery(recipe.parent / "home", "run", str(recipe))
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def diabetes_release(table: str, recipe: Path, forked_bloomery: Bloomery) -> dict[str, Any]:
    """The release of that run."""
    again = forked_bloomery(recipe.parent / "home", "run", str(recipe), "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    release: dict[str, Any] = json.loads(again.stdout)
    return release


def test_the_error_is_far_below_that_of_the_mean_and_metrics_are_consistent(
    diabetes_release: dict[str, Any], recipe: Path, forked_bloomery: Bloomery
) -> None:
    home, choice = recipe.parent / "home", diabetes_release["bento"]["choice"]
    dataset = choice["candidates"]["trained"]["dataset"]
    assert (dataset["task"], dataset["classes"], diabetes_release["version"]) == ("regression", [], 1)
    predictions = pq.read_table(home / choice["candidate"]["predictions_uri"])
    truth, prediction = (predictions[name].to_numpy() for name in ("truth", "prediction"))
    error = float(np.sqrt(np.mean((truth - prediction) ** 2)))
    assert error < 0.9 * np.std(truth)
    score = choice["candidate"]["score"]
    assert score["value"] == pytest.approx(error)
    assert score["low"] < error < score["high"]
    valid_rows = pq.read_table(home / dataset["valid_rows"]["uri"])
    labels = dict(zip(valid_rows["id"].to_pylist(), valid_rows["target"].to_pylist(), strict=True))
    assert truth == pytest.approx([labels[key] for key in predictions["id"].to_pylist()], rel=1e-5)
    version = json.loads(forked_bloomery(home, "show", "diabetes@champion", "--json").stdout)
    assert version["metrics"]["test_rmse"] == pytest.approx(error)
    assert {"test_mae", "test_r2", "rmse_rise_high", "test_rmse_low"} <= set(version["metrics"])
    assert f"RMSE {error:.1f} (" in version["description"]


def test_predictions_over_http_equal_the_measured_ones(
    diabetes_release: dict[str, Any], recipe: Path, clean_environment: Callable[..., dict[str, str]]
) -> None:
    home, choice = recipe.parent / "home", diabetes_release["bento"]["choice"]
    dataset = choice["candidates"]["trained"]["dataset"]
    predictions = pq.read_table(home / choice["candidate"]["predictions_uri"])
    rows = pq.read_table(home / dataset["valid_rows"]["uri"]).to_pylist()
    by_key = {row["id"]: {name: row[name] for name in dataset["inputs"]} for row in rows}
    completed = subprocess.run(
        [sys.executable, "-c", PREDICT, diabetes_release["bento"]["tag"]],
        input=json.dumps([by_key[key] for key in predictions["id"].to_pylist()]),
        env=clean_environment(home),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    response = json.loads(completed.stdout.splitlines()[-1])
    assert response["model"] == diabetes_release["bento"]["tag"]
    assert all(item["lower"] < item["value"] < item["upper"] for item in response["predictions"])
    interval = diabetes_release["bento"]["choice"]["candidate"]["interval"]
    truth = predictions["truth"].to_numpy()
    is_covered = [
        item["lower"] <= value <= item["upper"] for item, value in zip(response["predictions"], truth, strict=True)
    ]
    assert np.mean(is_covered) == pytest.approx(interval["coverage"]["value"], abs=0.02)
    values = [item["value"] for item in response["predictions"]]
    assert values == pytest.approx(
        predictions["prediction"].to_pylist(), abs=1e-3 * float(np.std(predictions["truth"]))
    )


def test_the_table_shows_the_error_and_its_increase(table: str) -> None:
    for words in ("RMSE", "rise", "the true value is", "of 83 rows"):
        assert words in table


def test_limits_of_classes_are_refused(recipe: Path, forked_bloomery: Bloomery) -> None:
    document = yaml.safe_load(recipe.read_text())
    strict = recipe.with_name("strict.yaml")
    strict.write_text(yaml.safe_dump({**document, "gates": {"min_accuracy": 0.5}}))
    misplaced = forked_bloomery(recipe.parent / "home", "check", str(strict), "--json")
    assert misplaced.returncode == 2
    assert "gates.min_accuracy is a limit of a classification" in json.loads(misplaced.stdout)["found"]


def test_each_candidate_has_a_table_of_slices(diabetes_release: dict[str, Any], recipe: Path) -> None:
    home, choice = recipe.parent / "home", diabetes_release["bento"]["choice"]
    (path,) = (home / "mlflow").glob(f"**/{choice['candidate']['run_id']}/artifacts/per_slice.json")
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {row["column"] for row in rows} == {"sex"}
    assert sum(row["rows"] for row in rows) == choice["candidates"]["trained"]["dataset"]["test"]["num_rows"]
    assert all(row["low"] < row["score"] < row["high"] for row in rows)
