"""State folders to change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Finished = tuple[Path, dict[str, Any]]


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A finished state folder to break. MLflow keeps absolute paths, so those are moved too."""
    home = tmp_path / ".bloomery"
    shutil.copytree(finished[0], home)
    code = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "tables = [('experiments', 'artifact_location'), ('runs', 'artifact_uri'), ('model_versions', 'source'),"
        " ('logged_models', 'artifact_location'), ('model_versions', 'storage_location')]\n"
        "for table, column in tables:\n"
        "    connection.execute(f'update {table} set {column} = replace({column}, ?, ?)', sys.argv[2:4])\n"
        "connection.commit()\n"
    )
    database = home / "mlflow" / "mlflow.db"
    subprocess.run([sys.executable, "-c", code, database, str(finished[0]), str(home)], check=True)
    return home
