"""Recipes are told to Prefect, or it is told why not, and tried again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_contracts.errors import RecipeInvalid
from flows.registration import main, why_ended
from flows.supervisor import Registration


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodell: {}\n")
    return path


def test_a_refused_recipe_is_named_and_the_process_ends_with_its_exit_code(
    home: Path, refused: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No server is needed for it: recipes are read before any is asked."""
    monkeypatch.setattr(sys, "argv", ["registration", "digits", str(refused)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().out
    assert ended.value.code == RecipeInvalid.exit_code == 2
    assert json.loads(said)["found"].startswith(f"the recipe {refused} is refused: ")
    assert why_ended(f"a warning\n{said}") == json.loads(said)["found"]
    assert why_ended("Traceback\n  File\nConnectError: no\n") == "ConnectError: no"
    assert why_ended("") == "it said nothing"


def test_a_failed_registration_is_told_and_tried_again_until_it_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of its own; what they are is put in their place: one that fails twice, then ends well."""
    tries = tmp_path / "tries"
    code = (
        f"import pathlib, sys; p = pathlib.Path({str(tries)!r}); p.open('a').write('x');"
        'print(\'{"found": "the recipe mine is refused"}\'); sys.exit(2 if len(p.read_text()) < 3 else 0)'
    )
    begin: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
    monkeypatch.setattr(
        "flows.supervisor.subprocess.Popen", lambda command, **how: begin([sys.executable, "-S", "-c", code], **how)
    )
    registration = Registration(("mine",), tmp_path / "log")
    seen: list[tuple[int, str]] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (registration.has_ended and not registration.as_documents()):
        registration.look("http://127.0.0.1:1/api")
        for one in registration.as_documents():
            assert (one.state, one.log) == ("failed", str(tmp_path / "log"))
            seen.append((one.restarts, one.why))
        time.sleep(0.05)
    why = "the deployments could not be registered: the recipe mine is refused"
    assert sorted(set(seen)) == [(1, why), (2, why)]
    registration.look("http://127.0.0.1:1/api")
    assert tries.read_text() == "xxx"
