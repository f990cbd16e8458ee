"""Commands that compute nothing import no engine, which would take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ENGINES = {"prefect", "mlflow", "torch", "pyspark", "bentoml", "great_expectations", "onnxruntime", "pandas", "sklearn"}
# Runs commands one after the other in one process, and then prints the names of all modules.
COMMANDS = """
import contextlib, json, sys
from bloomery.flows.cli.main import app
for command in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit):
        app(command)
print("LOADED", json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_look_ups_import_no_engine(
    finished_run: tuple[Path, dict[str, object]], clean_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """A run with everything cached, too: it starts no Prefect server and no flow run."""
    commands = [
        ["show", "digits"],
        ["show", "digits@champion"],
        ["history", "digits"],
        ["check", "digits"],
        ["run", "digits"],
    ]
    process = subprocess.run(
        [sys.executable, "-P", "-c", COMMANDS, json.dumps(commands)],
        env=clean_environment(finished_run[0]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    output, _, loaded = process.stdout.rpartition("LOADED")
    assert process.returncode == 0, process.stderr
    assert set(json.loads(loaded)) & ENGINES == set()
    for words in ("version 1 (champion)", "weakest class", "run", "= promote", "bloomery serve digits"):
        assert words in output
    assert output.count("found") >= 16, output  # all stages, by `check` and by `run`


def test_an_unknown_model_is_reported_without_creating_a_database(
    clean_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    process = subprocess.run(
        [sys.executable, "-P", "-c", COMMANDS, json.dumps([["show", "nope"], ["history", "nope"]])],
        env=clean_environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr.count("the registry has no 'nope'") == 2
    assert "mlflow" not in json.loads(process.stdout.rpartition("LOADED")[2])
    assert not os.path.exists(tmp_path / "home" / "mlflow" / "mlflow.db")


def test_a_prediction_in_python_imports_no_engine_but_its_runtime(
    finished_run: tuple[Path, dict[str, object]], clean_environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    code = (
        "import bloomery, sys\n"
        "model = bloomery.load('digits@champion')\n"
        "answer = model.predict([{'image': [0] * 64}])\n"
        "print(len(answer), [name for name in ('prefect', 'mlflow', 'torch', 'pyspark') if name in sys.modules])\n"
        "try:\n"
        "    model.predict([{'image': [17] * 64}])\n"
        "    raise AssertionError\n"
        "except bloomery.BloomeryError as refusal:\n"
        "    assert refusal.problems[0]['column'].startswith('image'), refusal.problems\n"
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=clean_environment(finished_run[0]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "1 []\n"
