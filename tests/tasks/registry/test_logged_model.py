"""The champion in MLflow's registry: loaded as MLflow's users do, it predicts raw rows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

import bloomery
from bloomery.data_contracts.odcs.contract import Column
from bloomery.data_contracts.records.records import Release
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.evaluation.held_out import read_held_out_rows, read_measured_predictions
from bloomery.tasks.registry import logged_model, model_registry
from bloomery.tasks.registry.logged_model import log_model, mark_incomplete
from bloomery.tasks.tracking import mlflow_runs
from tests.conftest import copy_state

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def forget_artifact_folders() -> None:
    """MLflow keeps the folder of each model by its id, which is in another state folder in each test."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()


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


def files_of(release: Release) -> set[str]:
    """The files of the champion's MLflow model, relative to its folder, without bytecode of earlier imports."""
    folder = model_folder(release)
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def model_folder(release: Release) -> Path:
    uri = log_model(release.bento)
    location = mlflow_runs.client().get_logged_model(uri.removeprefix("models:/")).artifact_location
    return Path(unquote(urlparse(location).path))


def test_files_that_are_gone_are_written_again(release: Release) -> None:
    """As after an interrupted call, or garbage collection; the registered version has them again."""
    uri, files, folder = log_model(release.bento), files_of(release), model_folder(release)
    for remove in (lambda: shutil.rmtree(folder), lambda: mark_incomplete(folder.parent.name, "interrupted")):
        remove()
        assert log_model(release.bento) == uri
        assert files_of(release) == files
        assert "incomplete" not in mlflow_runs.client().get_logged_model(uri.removeprefix("models:/")).tags


def test_an_interrupted_call_leaves_the_run_finished_and_is_repeated(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run_id = mlflow_runs.client(), release.bento.choice.candidate.run_id
    uri, files = log_model(release.bento), files_of(release)
    client.delete_logged_model(uri.removeprefix("models:/"))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(logged_model.RegistryFlavor, "save_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            log_model(release.bento)
    assert client.get_run(run_id).info.status == "FINISHED"
    repeated_uri = log_model(release.bento)
    assert repeated_uri != uri  # which is deleted
    assert log_model(release.bento) == repeated_uri
    assert files_of(release) == files
    assert client.get_logged_model(repeated_uri.removeprefix("models:/")).status == "READY"
    tags = model_registry.find_version("digits@champion").tags
    version = model_registry.register_version("digits", repeated_uri, run_id, tags, "again")
    assert version.version == "2"  # the first has the address of the deleted model
    assert model_registry.register_version("digits", repeated_uri, run_id, tags, "again").version == "2"


def test_a_version_predicts_after_its_state_folder_was_moved(
    finished_run: tuple[Path, dict[str, Any]], home: Path, tmp_path: Path
) -> None:
    copy_state(finished_run[0], tmp_path / "before")
    (home / "mlflow").rename(tmp_path / "empty")
    shutil.copytree(tmp_path / "before", home, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "before")
    model = bloomery.load("models:/digits@champion")
    predictions = model.predict([{"image": [0] * 64}])
    assert len(predictions) == 1


def test_the_signature_of_tags_states_the_structure_of_entities() -> None:
    encoder = Encoder.model_construct(classes=("B-PER", "O"), class_outputs=())
    nothing = {"tags": [], "probabilities": [], "entities": [], "unread_words": 0}  # of a sentence without words
    column = Column.model_validate({"name": "words", "logicalType": "array", "items": {"logicalType": "string"}})
    signature = logged_model._signature([column], logged_model._example_prediction(nothing, encoder))
    assert [str(output).partition(" (")[0] for output in signature.outputs.inputs] == [
        "'tags': Array(string)",
        "'probabilities': Array(double)",
        "'entities': Array({end: long",
        "'unread_words': long",
    ]
