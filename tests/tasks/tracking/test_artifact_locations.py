"""A state folder that was moved or copied names its own artifacts."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bloomery.tasks.tracking.artifact_locations import ARTIFACTS, artifact_location, correct_artifact_locations

NAME = "my [wine] 100%"  # a name that is quoted in an address


def create_database(home: Path) -> Path:
    """Creates the columns with locations, and one experiment, run, model and version of two tools."""
    (home / ARTIFACTS / NAME).mkdir(parents=True)
    path, location = home / "mlflow" / "mlflow.db", artifact_location(home, NAME)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table experiments (name, artifact_location); create table runs (artifact_uri);"
            "create table logged_models (artifact_location); create table model_versions (source, storage_location)"
        )
        rows = [(NAME, location), ("theirs", "file:///tmp/mlflow/artifacts/theirs"), ("Default", "/x/mlruns/0")]
        connection.executemany("insert into experiments values (?, ?)", rows)
        connection.executemany(
            "insert into runs values (?)", [(f"{location}/r/artifacts",), ("s3://bucket/r",), (None,)]
        )
        connection.execute("insert into logged_models values (?)", (f"{location}/models/m-1/artifacts",))
        connection.execute(
            "insert into model_versions values (?, ?)", ("models:/m-1", f"{location}/models/m-1/artifacts")
        )
        connection.commit()
    return path


def locations(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        queries = (
            "select artifact_location from experiments",
            "select artifact_uri from runs",
            "select artifact_location from logged_models",
            "select source from model_versions",
            "select storage_location from model_versions",
        )
        return [row[0] for query in queries for row in connection.execute(query)]


def is_in(location: str | None, folder: str) -> bool:
    return location is not None and (location == folder or location.startswith(f"{folder}/"))


def correct(home: Path) -> list[str]:
    with closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as connection:
        return correct_artifact_locations(connection, home)


@pytest.mark.parametrize("move", [Path.rename, shutil.copytree])
def test_a_moved_or_copied_state_folder_names_its_own_artifacts(
    move: Callable[[Path, Path], object], tmp_path: Path
) -> None:
    old, new = tmp_path / "old home", tmp_path / "new home"
    before = locations(create_database(old))
    assert correct(old) == []
    move(old, new)
    assert correct(new) == [NAME]
    after = locations(new / "mlflow" / "mlflow.db")
    own, own_new = artifact_location(old, NAME), artifact_location(new, NAME)
    expected = [f"{own_new}{location.removeprefix(own)}" if is_in(location, own) else location for location in before]
    assert after == expected
    assert sum(is_in(location, own_new) for location in after) == 4
    assert correct(new) == []
    if old.exists():
        assert locations(old / "mlflow" / "mlflow.db") == before


def test_the_same_folder_under_another_name_is_not_moved(tmp_path: Path) -> None:
    create_database(tmp_path / "home")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    assert correct(tmp_path / "link") == []


def test_a_database_that_was_copied_without_its_artifacts_is_not_changed(tmp_path: Path) -> None:
    before = locations(create_database(tmp_path / "old"))
    (tmp_path / "new" / "mlflow").mkdir(parents=True)
    shutil.copyfile(tmp_path / "old" / "mlflow" / "mlflow.db", tmp_path / "new" / "mlflow" / "mlflow.db")
    assert correct(tmp_path / "new") == []
    assert locations(tmp_path / "new" / "mlflow" / "mlflow.db") == before
