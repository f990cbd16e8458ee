"""Reading MLflow's database directly gives what MLflow's client gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.registry import model_registry
from bloomery.tasks.tracking import local_database, mlflow_runs
from bloomery.tasks.tracking.local_database import DatabaseUnreadable
from bloomery.tasks.tracking.model_versions import ModelVersion


@pytest.fixture
def client(home: Path) -> Any:
    """MLflow's client of a registry with two models, three versions (one deleted) and a prompt."""
    client = mlflow_runs.client()
    for name in ("wine", "digits"):
        client.create_registered_model(name)
    for number in (1, 2, 3):
        tags = {"bento": f"digits:{number}", "release": "promoted\nby a run", "score": "98 %"}
        client.create_model_version("digits", str(home), tags=tags, description=f"version {number}: é")
    client.delete_model_version("digits", "2")
    client.set_registered_model_alias("digits", "champion", "1")
    client.set_registered_model_alias("digits", "2026-11", "3")
    client.set_registered_model_tag("digits", "task", "classification")
    client.register_prompt("a-prompt", "Hello {{name}}")
    return client


def test_versions_are_those_of_the_client(client: Any) -> None:
    by_client = [ModelVersion.from_mlflow(item) for item in client.search_model_versions("name = 'digits'")]
    versions = local_database.list_versions("digits")
    assert versions == sorted(by_client, key=lambda version: -int(version.version))
    assert [version.version for version in versions] == ["3", "1"]
    for number in ("1", "3"):
        assert local_database.find_version("digits", number) == ModelVersion.from_mlflow(
            client.get_model_version("digits", number)
        )
    for alias in ("champion", "2026-11"):
        assert local_database.find_by_alias("digits", alias) == ModelVersion.from_mlflow(
            client.get_model_version_by_alias("digits", alias)
        )
    assert model_registry.find_version("digits@latest").version == "3"  # by the client, which knows what it means
    assert local_database.list_names() == sorted(model.name for model in client.search_registered_models())
    assert local_database.list_names() == ["digits", "wine"]
    assert local_database.read_model_tags("digits") == client.get_registered_model("digits").tags


@pytest.mark.usefixtures("client")
def test_what_does_not_exist_is_not_found() -> None:
    assert local_database.list_versions("wine") == local_database.list_versions("nope") == []
    assert local_database.find_version("digits", "2") is None  # deleted
    assert local_database.find_version("digits", "9") is local_database.find_version("nope", "1") is None
    assert local_database.find_by_alias("wine", "champion") is None
    assert local_database.read_model_tags("nope") == {}
    assert not local_database.is_finished_run("nope")
    assert model_registry.find_champion("wine") is None


@pytest.mark.usefixtures("home")
def test_runs_and_metrics_are_those_of_the_client() -> None:
    with mlflow_runs.logged_run("digits", "a", "key") as run:
        mlflow_runs.log_metric_steps(run, [(1, {"loss": 0.5, "nan": float("nan")}), (2, {"loss": 0.25, "big": 1e300})])
        assert not local_database.is_finished_run(run)
    assert local_database.is_finished_run(run)
    by_client = mlflow_runs.client().get_run(run).data.metrics
    assert repr(local_database.read_metrics(run)) == repr(dict(sorted(by_client.items())))
    assert mlflow_runs.read_metrics(run)["loss"] == 0.25
    mlflow_runs.client().delete_run(run)
    assert not local_database.is_finished_run(run)
    assert not mlflow_runs.run_exists(run)


READS: list[Callable[[], Any]] = [
    lambda: local_database.list_versions("digits"),
    lambda: local_database.find_version("digits", "1"),
    lambda: local_database.find_by_alias("digits", "champion"),
    local_database.list_names,
    lambda: local_database.read_model_tags("digits"),
    lambda: local_database.is_finished_run("run"),
]


def test_nothing_is_registered_where_there_is_no_database(home: Path) -> None:
    (home / "mlflow" / "mlflow.db").unlink()
    assert [read() for read in READS] == [[], None, None, [], {}, False]
    assert not (home / "mlflow" / "mlflow.db").exists()


def test_what_cannot_be_read_with_certainty_is_left_to_the_client(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = home / "mlflow" / "mlflow.db"
    for name in ("x", "1; drop table runs"):
        with pytest.raises(DatabaseUnreadable):
            local_database.find_version("digits", name)
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("create table model_versions (name text)")  # another layout
    for content in (database.read_bytes(), b"", b"no database"):
        database.write_bytes(content)
        for read in READS:
            with pytest.raises(DatabaseUnreadable):
                read()
    for uri in ("http://127.0.0.1:9", f"sqlite:///{database}?timeout=60", f"sqlite+pysqlite:///{database}"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        settings.cache_clear()
        for read in READS:
            with pytest.raises(DatabaseUnreadable):
                read()


def test_another_registry_is_read_by_the_client(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client writes versions there, so the local database has none or old ones."""
    assert model_registry.find_champion("digits") is not None
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/registry.db")
    mlflow_runs.client.cache_clear()
    assert model_registry.find_champion("digits") is None
    mlflow_runs.client().create_registered_model("beans")
    assert model_registry.list_names() == ["beans"]
