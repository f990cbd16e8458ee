"""Hyperparameter search: its trials in MLflow, its best trial, its errors, and its resumption after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import RecipeInvalid, TrainingDiverged
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import NumberInput
from bloomery.models.networks.config import FtTransformer, Mlp
from bloomery.models.training.config import Range, Search, Training
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import hyperparameter_search
from bloomery.tasks.train.stage import train

pytestmark = pytest.mark.slow

MLP = Mlp(kind="mlp", hidden=(8,), dropout=0.0)
RATES = {"training.learning_rate": Range(low=1e-4, high=1e-1, log=True)}
CHILD = """
import sys
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
apply_engine_environment()
require_state_folder()
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.networks.config import Mlp
from bloomery.models.training.config import Training
from bloomery.tasks.train import hyperparameter_search
dataset, model, training, run_id = sys.argv[1:]
if __name__ == "__main__":
    with open(dataset) as file:
        rows = Dataset.model_validate_json(file.read())
    network, training = Mlp.model_validate_json(model), Training.model_validate_json(training)
    job = hyperparameter_search.SearchJob("key", run_id, rows, network, training, None)
    hyperparameter_search.run_search(job)
"""


@pytest.fixture
def dataset(checked_rows_of, home: Path) -> Dataset:
    """A regression with labels around 500."""
    values = np.random.default_rng(0).normal(size=(400, 3))
    columns = {f"v{column}": pa.array(values[:, column]) for column in range(3)}
    label = pa.array(500 + 100 * values[:, 0] * values[:, 1])
    checked = checked_rows_of(pa.table({"id": pa.array(range(400)), **columns, "label": label}))
    (home / "report.html").write_text("a report")
    inputs = (NumberInput(kind="number", columns=tuple(columns)),)
    features = Features(key="id", label="label", task="regression", inputs=inputs)
    return prepare(checked.model_copy(update={"report_uri": "report.html"}), features, Engine(kind="local"))


def training_of(**options: Any) -> Training:
    return Training(epochs=3, explain=None, search=Search(**{"trials": 8, "epochs": 6, "space": RATES, **options}))


def trials_of(dataset: Dataset) -> list[Any]:
    experiment = mlflow_runs.ensure_experiment(dataset.valid_rows.contract.name)
    return [run for run in mlflow_runs.client().search_runs([experiment]) if "trial" in run.data.tags]


def test_the_best_trial_is_trained_again_and_every_trial_is_a_finished_child_run(dataset):
    trained = train(dataset, MLP, training_of())
    run, trials = mlflow_runs.client().get_run(trained.run_id), trials_of(dataset)
    assert len(trials) == 8
    assert {trial.data.tags["mlflow.parentRunId"] for trial in trials} == {trained.run_id}
    assert {trial.info.status for trial in trials} == {"FINISHED"}
    completed_trials = [trial for trial in trials if "pruned" not in trial.data.tags]
    pruned_trials = [trial for trial in trials if "pruned" in trial.data.tags]
    assert pruned_trials
    assert all("val_score" in trial.data.metrics for trial in pruned_trials)
    best = min(completed_trials, key=lambda trial: trial.data.metrics["best_val_score"])
    assert run.data.metrics["search_trials"] == len(completed_trials)
    # In the units of the label, like the score of the run itself.
    assert run.data.metrics["search_best"] == pytest.approx(best.data.metrics["best_val_score"])
    assert 20 < run.data.metrics["search_best"] < 200
    assert float(run.data.params["training.learning_rate"]) == pytest.approx(
        float(best.data.params["training.learning_rate"])
    )
    assert run.data.params["training.epochs"] == "3"


def test_a_search_in_which_every_trial_diverges_fails(dataset):
    space = {"training.learning_rate": (1e30, 1e31), "training.clip_norm": (1e30,)}
    with pytest.raises(TrainingDiverged, match="none of 2 trials"):
        hyperparameter_search.run_search(
            hyperparameter_search.SearchJob("key", "none", dataset, MLP, training_of(trials=2, space=space), None)
        )
    assert {trial.info.status for trial in trials_of(dataset)} == {"FAILED"}


def test_an_error_in_a_process_of_the_search_is_raised(dataset):
    space = {"model.width": (20,), "model.num_heads": (12,)}  # each value alone is valid
    model = FtTransformer(kind="ft_transformer", width=60, num_heads=5)
    training = training_of(parallel=2, space=space)
    with pytest.raises(RecipeInvalid, match="width 20 is not divisible by 12 heads"):
        hyperparameter_search.run_search(hyperparameter_search.SearchJob("key", "none", dataset, model, training, None))


def test_a_killed_search_ends_its_processes_and_resumes_with_the_missing_trials(dataset, home: Path, tmp_path: Path):
    training = training_of(trials=4, epochs=60, parallel=2)
    mlflow_runs.ensure_experiment(dataset.valid_rows.contract.name)
    (tmp_path / "dataset").write_text(dataset.model_dump_json(by_alias=True))
    script = tmp_path / "killed.py"
    script.write_text(CHILD)
    arguments = (str(tmp_path / "dataset"), MLP.model_dump_json(), training.model_dump_json(), "killed")
    root = Path(__file__).parents[3]
    child = subprocess.Popen([sys.executable, str(script), *arguments], cwd=root, env=None, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (
        not any("best_val_score" in trial.data.metrics for trial in trials_of(dataset)) and time.monotonic() < deadline
    ):
        assert child.poll() is None
        time.sleep(0.2)
    workers = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    earlier_trials = {trial.info.run_id for trial in trials_of(dataset) if trial.info.status == "FINISHED"}
    assert 1 <= len(earlier_trials) < 4

    experiment = mlflow_runs.ensure_experiment(dataset.valid_rows.contract.name)
    run_id = mlflow_runs.client().create_run(experiment).info.run_id
    sequential_training = training.model_copy(update={"search": training.search.model_copy(update={"parallel": 1})})
    hyperparameter_search.run_search(
        hyperparameter_search.SearchJob("key", run_id, dataset, MLP, sequential_training, None)
    )
    trials = trials_of(dataset)
    assert {trial.data.tags["mlflow.parentRunId"] for trial in trials} == {run_id}
    assert not [trial for trial in trials if trial.info.status == "RUNNING"]
    finished_trials = {trial.info.run_id for trial in trials if trial.info.status == "FINISHED"}
    assert earlier_trials < finished_trials
    assert len(finished_trials) == 4
