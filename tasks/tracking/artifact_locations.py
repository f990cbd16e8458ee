"""The locations of artifacts in MLflow's local database. They are absolute, and follow a moved state folder."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

ARTIFACTS = "mlflow/artifacts"  # in the state folder
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def artifact_location(home: Path, experiment_name: str) -> str:
    """The address of the folder of an experiment's artifacts, in the state folder."""
    return (home / ARTIFACTS / experiment_name).as_uri()


def correct_artifact_locations(connection: sqlite3.Connection, home: Path) -> list[str]:
    """Makes the database in the state folder `home` name the artifacts in it. Returns the experiments that it has
    corrected.

    They are those of a state folder that is another folder now, or none: it was moved, or copied with its artifacts.
    """
    corrected = []
    for name, location in connection.execute("select name, artifact_location from experiments").fetchall():
        folder = str(location).removesuffix(f"/{ARTIFACTS}/{quote(str(name))}")
        if not folder.startswith("file://") or folder == location or not _was_moved(folder, home, str(name)):
            continue
        replacement = artifact_location(home, name)
        for table, column in _COLUMNS:
            connection.execute(
                f"update {table} set {column} = ? || substr({column}, ?) "
                f"where {column} = ? or substr({column}, 1, ?) = ?",
                (replacement, len(location) + 1, location, len(location) + 1, f"{location}/"),
            )
        corrected.append(str(name))
    connection.commit()
    return corrected


def _was_moved(folder: str, home: Path, experiment_name: str) -> bool:
    """Whether the state folder with the address `folder` is `home` now, or was copied to it."""
    path = Path(unquote(urlparse(folder).path))
    if path == home or (path.exists() and path.samefile(home)):
        return False
    return not path.exists() or (home / ARTIFACTS / experiment_name).is_dir()
