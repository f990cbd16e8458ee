"""What `bloomery serve` says, and which version it follows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bloomery.flows.cli.commands.serve import describe_start, follows_champion


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("digits", True), ("digits@champion", True), ("digits:3", False), ("digits@2026-11", False)],
)
def test_an_endpoint_follows_the_champion_unless_it_names_another_version(reference: str, expected: bool) -> None:
    assert follows_champion(reference) is expected


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "127.0.0.1:3000"),
        ("0.0.0.0", "127.0.0.1:3000"),
        ("::", "[::1]:3000"),
        ("fe80::1", "[fe80::1]:3000"),
    ],
)
def test_serve_says_where_it_listens_and_how_to_stop_it(host: str, url: str) -> None:
    version: Any = cast(Any, SimpleNamespace(name="digits", version="3", tags={"bento": "digits:abc"}))
    lines = list(describe_start(version, host, 3000))
    assert lines[0].startswith("digits version 3 (bento digits:abc) starts on ")
    assert f"http://{url}/docs" in lines[1]
    assert "Ctrl-C" in lines[2]


@pytest.mark.slow
def test_serve_says_at_once_what_it_does(
    tmp_path: Path, clean_environment: Callable[..., dict[str, str]], foreign_folder: Path
) -> None:
    """It writes a line before it imports an engine, also into a pipe."""
    command = (
        "import sys\n"
        "sys.argv = ['bloomery', 'serve', 'nope']\n"
        "from bloomery.flows.cli.main import main\n"
        "assert not {'mlflow', 'bentoml', 'prefect'} & sys.modules.keys()\n"
        "main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", command],
        env=clean_environment(tmp_path / "home"),
        cwd=foreign_folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.startswith("serving nope: reading the registry"), process.stderr
    assert process.returncode == 2
    assert "the registry has no nope" in process.stderr
