"""State folders in which a run has ended, to break or to go on with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_MOVE = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1])\n"
    "tables = [('experiments', 'artifact_location'), ('runs', 'artifact_uri'), ('model_versions', 'source'),"
    " ('logged_models', 'artifact_location'), ('model_versions', 'storage_location')]\n"
    "for table, column in tables:\n"
    "    connection.execute(f'update {table} set {column} = replace({column}, ?, ?)', sys.argv[2:4])\n"
    "connection.commit()\n"
)


@pytest.fixture(scope="session")
def copied(finished: tuple[Path, dict[str, Any]]) -> Callable[[Path], Path]:
    """`copied(folder)` is a finished state folder below `folder`, MLflow's absolute paths moved with it."""

    def make(folder: Path) -> Path:
        home = folder / ".bloomery"
        shutil.copytree(finished[0], home)
        database = home / "mlflow" / "mlflow.db"
        subprocess.run([sys.executable, "-c", _MOVE, database, str(finished[0]), str(home)], check=True)
        return home

    return make


@pytest.fixture
def copy(copied: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A finished state folder to break."""
    return copied(tmp_path)
