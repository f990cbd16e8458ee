"""The champion in MLflow's registry: loaded as MLflow's users do, it predicts raw rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery.data_contracts.records.records import Release
from bloomery.tasks.evaluation.held_out import read_held_out_rows, read_measured_predictions
from bloomery.tasks.registry.logged_model import log_model
from bloomery.tasks.tracking import mlflow_runs
from tests.conftest import copy_state

pytestmark = pytest.mark.slow


@pytest.fixture
def release(finished_run: tuple[Path, dict[str, Any]], home: Path) -> Release:
    """The release of a finished run, the state folder of which is copied to `home`."""
    copy_state(finished_run[0], home)
    mlflow_runs.client()
    return Release.model_validate(finished_run[1])


def test_the_champion_predicts_the_held_out_rows_as_measured(release: Release) -> None:
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model("models:/digits@champion", suppress_warnings=True)
    choice = release.bento.choice
    measured = read_measured_predictions(choice)
    predictions = model.predict(read_held_out_rows(choice).to_pandas())
    assert predictions["label"].tolist() == measured["prediction"].to_pylist()
    classes = [str(number) for number in range(10)]
    probabilities = np.array([[row[name] for name in classes] for row in predictions["probabilities"]])
    assert probabilities == pytest.approx(np.array(measured["probabilities"].to_pylist()), abs=1e-3)
    assert model.predict(model.input_example)["label"].tolist() == measured["prediction"].to_pylist()[:4]
    assert [str(column) for column in model.metadata.signature.inputs.inputs] == ["'image': Array(long) (required)"]
    for encoded in (np.zeros((2, 1, 8, 8), np.float32), np.zeros((2, 64))):
        with pytest.raises(Exception, match="the model requires a DataFrame with the columns image"):
            model.predict(encoded)
    with pytest.raises(Exception, match="row 0, column image"):
        model.predict(read_held_out_rows(choice).slice(0, 1).to_pandas().assign(image=[[17] * 64]))


def test_a_version_is_logged_once(release: Release) -> None:
    uri = log_model(release.bento)
    assert log_model(release.bento) == uri
    assert mlflow_runs.client().get_model_version_by_alias("digits", "champion").source == uri
