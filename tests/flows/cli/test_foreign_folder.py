"""Commands start in any folder: modules that lie there are neither imported nor executed.

The fixtures `bloomery` and `forked_bloomery` run every command in such a folder and check this. Here are other ways to
start a command, and the rule by which child processes start.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bloomery.tasks.infrastructure.python_processes import code_command, module_command, safe_path_variables
from tests.conftest import QUICK
from tests.foreign_folder import fill_folder, imported_files

ROOT = Path(__file__).resolve().parents[3]
Environment = Callable[..., dict[str, str]]


@pytest.mark.parametrize("start", ["console script", "python -m", "python -P -m"])
def test_a_command_imports_nothing_of_the_current_folder(
    tmp_path: Path, foreign_folder: Path, clean_environment: Environment, start: str
) -> None:
    commands = {
        "console script": [str(Path(sys.executable).with_name("bloomery")), "--help"],
        "python -m": [sys.executable, "-m", "bloomery.flows.cli", "--help"],
        "python -P -m": module_command("bloomery.flows.cli", "--help"),
    }
    folder = foreign_folder
    if start == "python -m":
        # It takes the package itself, and some modules of Python, from the current folder before any code of ours runs.
        folder = tmp_path / "work"
        names = [f"{name}.py" for name in _loaded_before_a_module(tmp_path)]
        assert not {"typing.py", "__future__.py", "logging.py"} & set(names)
        shutil.copytree(foreign_folder, folder, ignore=shutil.ignore_patterns("bloomery*", *names))
    environment = clean_environment(tmp_path / "home")
    environment.pop("PYTHONSAFEPATH", None)
    completed = subprocess.run(
        commands[start], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert imported_files(foreign_folder) == []  # copied modules report there, too


def _loaded_before_a_module(folder: Path) -> list[str]:
    """The modules that `python -m` has imported when it executes the first line of a package."""
    (folder / "probe").mkdir()
    (folder / "probe" / "__init__.py").write_text("import sys; print(*sys.modules); raise SystemExit")
    process = subprocess.run([sys.executable, "-m", "probe"], cwd=folder, capture_output=True, text=True, check=True)
    return process.stdout.split()


def test_grandchildren_import_nothing_either(foreign_folder: Path) -> None:
    """Engines start further processes, without `-P`."""
    folder = foreign_folder
    child = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'calendar', '2026', '1'], check=True)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", str(ROOT)])}
    subprocess.run(code_command(code), cwd=folder, env={**environment, **safe_path_variables(environment)}, check=True)
    assert imported_files(folder) == []


def test_empty_entries_of_pythonpath_are_removed() -> None:
    variables = safe_path_variables({"PYTHONPATH": os.pathsep.join(["", "/code", ""])})
    assert (variables["PYTHONPATH"], variables["PYTHONSAFEPATH"]) == ("/code", "1")
    assert "PYTHONPATH" not in safe_path_variables({})


def test_all_child_processes_start_without_the_current_folder() -> None:
    rooms = ("data_contracts", "models", "tasks", "flows", "deployments")
    unsafe = re.compile(r"""sys\.executable,\s*["']-[mc]["']""")
    paths = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert [str(path) for path in paths if unsafe.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("changes", ["custom network", "torchrun", "Spark", "torchrun on Spark"])
def test_a_run_in_its_recipes_folder_imports_only_the_named_network(
    tmp_path: Path, clean_environment: Environment, create_home: Callable[[Path], Path], changes: str
) -> None:
    folder = fill_folder(tmp_path / "work")
    shutil.rmtree(folder / "models")
    (folder / "models.py").write_text(
        "from torch import nn\n"
        "def network(layout, num_outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_outputs))\n"
    )
    recipe: dict[str, Any] = yaml.safe_load(QUICK.read_text())
    recipe["model"] = {"kind": "custom", "function": "models:network"}
    recipe["compression"]["candidates"] = [{"name": "fp32"}]
    recipe["gates"] = {"min_accuracy": 0.2}
    if "torchrun" in changes:
        recipe["training"] |= {"devices": 2, "device": "cpu"}
    if changes == "torchrun on Spark":
        recipe["training"]["launcher"] = "spark"
        recipe["spark"] = {"master": "local[2]"}
    if changes == "Spark":
        recipe["engine"] = "spark"
    (folder / "own.yaml").write_text(yaml.safe_dump(recipe))
    home = create_home(tmp_path / ".bloomery")
    completed = subprocess.run(
        module_command("bloomery.flows.cli", "run", "own.yaml"),
        cwd=folder,
        env=clean_environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    logs = "".join(path.read_text(errors="replace")[-3000:] for path in home.glob("logs/*"))
    assert completed.returncode == 0, completed.stdout + completed.stderr + logs
    assert imported_files(folder) == []
