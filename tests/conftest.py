"""What tests of every room share: state folders of their own, and the command line as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("BLOOMERY_", "PREFECT_", "MLFLOW_", "BENTOML_", "GX_", "MPL", "ATEN_", "ONEDNN_", "MKL_CBWR")


def environment_for(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user who has set nothing but the state folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, "BLOOMERY_HOME": str(home), "COLUMNS": "100", **more}


@pytest.fixture(scope="session")
def clean_environment() -> Callable[..., dict[str, str]]:
    return environment_for


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder for stages that are called in this process."""
    from tasks import settings, tracking

    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BLOOMERY_HOME", str(tmp_path / "home"))
    settings.settings.cache_clear()
    tracking.client.cache_clear()
    settings.enter()
    yield tmp_path / "home"
    settings.settings.cache_clear()
    tracking.client.cache_clear()
    os.environ.clear()
    os.environ.update(before)


Bloomery = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def bloomery() -> Bloomery:
    """`bloomery(home, "run", "digits")`: the command line in a process of its own."""

    def call(
        home: Path, *arguments: str, timeout_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=environment_for(home, **environment),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, bloomery: Bloomery) -> tuple[Path, dict[str, Any]]:
    """A state folder in which `bloomery run digits` has ended, and its release. Copy the folder before a change."""
    home = tmp_path_factory.mktemp("finished") / ".bloomery"  # hidden, like the default
    ended = bloomery(home, "run", "digits", "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return home, json.loads(ended.stdout)
