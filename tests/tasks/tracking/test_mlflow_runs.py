"""MLflow's database, which several processes may create at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.entities import Dataset
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_metric_name

from bloomery.tasks.tracking import mlflow_runs

CODE = "from bloomery.tasks.tracking import mlflow_runs; print('EXPERIMENT', mlflow_runs.ensure_experiment('one'))"


@pytest.mark.slow
def test_processes_that_start_at_once_create_one_database(home: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({stdout.rpartition("EXPERIMENT")[2].strip() for stdout, _ in outputs}) == 1


@given(st.lists(st.text(), unique=True, max_size=6))
@example(["a/b", "a_b", "..", "%", "(prediction)", "prediction", "x" * 300])
def test_every_name_of_a_column_becomes_a_metric(names: list[str]) -> None:
    allowed = mlflow_runs.metric_names(names)
    assert allowed.keys() == {*names}
    assert len(set(allowed.values())) == len(names)
    for name in allowed.values():
        _validate_metric_name(f"p_value/{name}")
    assert mlflow_runs.metric_names(["hours per week", "a.b"]) == {"hours per week": "hours per week", "a.b": "a.b"}


def test_a_data_set_that_another_run_inserts_at_the_same_time_is_logged(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset(name="digits", digest="d", source_type="local", source="{}")
    client = mlflow_runs.client()
    first, second = (
        client.create_run(mlflow_runs.ensure_experiment("digits"), run_name=name).info.run_id
        for name in ("first", "second")
    )
    log_inputs = client.log_inputs

    def lose_the_race(*arguments: Any) -> None:
        """Inserts the data set for the other run between the look-up and the insertion of this one."""
        monkeypatch.setattr(client, "log_inputs", log_inputs)
        mlflow_runs.log_training_data(first, dataset)
        raise MlflowException("UNIQUE constraint failed: datasets.experiment_id, datasets.name, datasets.digest")

    monkeypatch.setattr(client, "log_inputs", lose_the_race)
    mlflow_runs.log_training_data(second, dataset)
    for run_id in (first, second):
        (logged,) = client.get_run(run_id).inputs.dataset_inputs
        assert (logged.dataset.name, logged.tags[0].value) == ("digits", "training")
