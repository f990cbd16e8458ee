"""The MLflow model of a bento: its files are complete or written again, and garbage collection frees them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bloomery.data_contracts.records.records import Bento, Release
from bloomery.tasks.registry import garbage_collection, logged_model, model_registry
from bloomery.tasks.registry.garbage_collection import VersionDecision
from bloomery.tasks.registry.logged_model import log_model, mark_incomplete
from bloomery.tasks.tracking import mlflow_runs

MakeBento = Callable[..., Bento]


class SmallFlavor:
    """Writes a small model in place of that of a bento."""

    @staticmethod
    def save_model(path: str, mlflow_model: Any, **options: Any) -> None:
        (Path(path) / "data").mkdir(parents=True)
        (Path(path) / "data" / "network.onnx").write_text(options["content"])
        mlflow_model.add_flavor("python_function", loader_module="x")
        mlflow_model.save(str(Path(path) / "MLmodel"))


@pytest.fixture
def bento_of_run(home: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> MakeBento:
    """Makes a bento of a new finished run of a candidate."""
    monkeypatch.setattr(logged_model, "RegistryFlavor", SmallFlavor)
    monkeypatch.setattr(logged_model, "model_options", lambda source, scratch: {"content": str(source)})
    client = mlflow_runs.client()

    def make(tag: str = "digits:abc") -> Bento:
        run_id = client.create_run(mlflow_runs.ensure_experiment("digits")).info.run_id
        client.log_metric(run_id, "accuracy", 0.5)
        client.set_terminated(run_id, "FINISHED")
        choice = release.bento.choice
        candidate = choice.candidate.model_copy(update={"run_id": run_id})
        return release.bento.model_copy(
            update={"tag": tag, "choice": choice.model_copy(update={"candidate": candidate})}
        )

    return make


def register(bento: Bento) -> Any:
    run_id = bento.choice.candidate.run_id
    tags = {model_registry.BENTO: bento.tag, model_registry.CANDIDATE_RUN: run_id}
    return model_registry.register_version("digits", log_model(bento), run_id, tags, "")


def model_of(bento: Bento) -> Any:
    return mlflow_runs.client().get_logged_model(log_model(bento).removeprefix("models:/"))


def folder_of(bento: Bento) -> Path:
    return Path(model_of(bento).artifact_location.removeprefix("file://"))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_model_is_logged_once_and_its_run_stays_finished(bento_of_run: MakeBento) -> None:
    bento = bento_of_run()
    uri, folder = log_model(bento), folder_of(bento)
    assert files_in(folder) == ["MLmodel", "data/network.onnx"]
    written = (folder / "MLmodel").stat().st_mtime_ns
    assert log_model(bento) == uri
    assert (folder / "MLmodel").stat().st_mtime_ns == written
    model = model_of(bento)
    assert (model.status, model.tags.get("incomplete")) == ("READY", None)
    assert [metric.key for metric in model.metrics] == ["accuracy"]
    run = mlflow_runs.client().get_run(bento.choice.candidate.run_id)
    assert run.info.status == "FINISHED"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


@pytest.mark.parametrize("loss", ["its folder is gone", "it was interrupted"])
def test_missing_files_are_written_again_in_their_place(bento_of_run: MakeBento, loss: str) -> None:
    bento = bento_of_run()
    uri, folder = log_model(bento), folder_of(bento)
    if loss == "its folder is gone":
        shutil.rmtree(folder)
    else:
        (folder / "data" / "network.onnx").unlink()
        mark_incomplete(folder.parent.name, loss)
    assert log_model(bento) == uri
    assert files_in(folder) == ["MLmodel", "data/network.onnx"]
    assert "incomplete" not in model_of(bento).tags
    again = bento_of_run()  # the same bento, packaged by another run
    version = register(bento)
    shutil.rmtree(folder)
    assert register(again).version == version.version
    assert files_in(folder) == ["MLmodel", "data/network.onnx"]


def test_an_interrupted_call_is_repeated(bento_of_run: MakeBento, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    bento = bento_of_run()
    with monkeypatch.context() as patch:
        patch.setattr(SmallFlavor, "save_model", staticmethod(interrupt))
        with pytest.raises(KeyboardInterrupt):
            log_model(bento)
    assert mlflow_runs.client().get_run(bento.choice.candidate.run_id).info.status == "FINISHED"
    assert files_in(folder_of(bento)) == ["MLmodel", "data/network.onnx"]
    assert model_of(bento).status == "READY"


def test_a_deleted_model_gets_a_new_version(bento_of_run: MakeBento) -> None:
    bento = bento_of_run()
    version = register(bento)
    mlflow_runs.client().delete_logged_model(version.source.removeprefix("models:/"))
    new_version = register(bento)
    assert new_version.source != version.source
    assert [new_version.version, register(bento).version] == ["2", "2"]


def test_the_files_of_freed_versions_are_removed_and_those_of_others_stay(bento_of_run: MakeBento, home: Path) -> None:
    bentos = [bento_of_run("digits:abc"), bento_of_run("digits:def")]
    for bento in bentos:
        register(bento)
    freed_folder, kept_folder = map(folder_of, bentos)
    decision = VersionDecision(name="digits", version=1, bento="digits:abc", reason="")
    (removal,) = garbage_collection._plan_registry_copies([decision], [], {"digits:def"})
    assert (removal.kind, home / removal.path, removal.size_bytes > 0) == ("registry copy", freed_folder, True)
    assert garbage_collection._try_remove(removal, lambda _: None)
    assert not freed_folder.exists()
    assert files_in(kept_folder) == ["MLmodel", "data/network.onnx"]
    assert list(garbage_collection._plan_registry_copies([decision], [], {"digits:def"})) == []
    assert register(bentos[0]).version == "1"
    assert files_in(freed_folder) == ["MLmodel", "data/network.onnx"]
