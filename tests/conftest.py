"""Fixtures for the tests of every room: isolated state folders, finished runs, and the command line."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bloomery.tasks.infrastructure.device import instruction_set
from bloomery.tasks.infrastructure.python_processes import module_command
from tests import examples  # noqa: F401 - loads hypothesis' profile before tests are collected
from tests.foreign_folder import fill_folder, imported_files
from tests.forks import Forks
from tests.processes import responds

pytest_plugins = ("tests.checkpoints", "tests.records", "tests.scheduling")
ROOT = Path(__file__).resolve().parent.parent
QUICK = ROOT / "tests" / "digits-quick.yaml"
ENVIRONMENT_PREFIXES = ("BLOOMERY_", "PREFECT_", "MLFLOW_", "BENTOML_", "GX_", "MPL", "ATEN_", "ONEDNN_", "MKL_CBWR")

if not hasattr(sys.modules["__main__"], "__file__"):
    # Without it, PySpark mistakes a worker of pytest-xdist for a run of doctests, and ends it.
    sys.modules["__main__"].__file__ = __file__

# Spark's Java runs for seconds only: full optimisation of its code would cost more time than it saves.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
# Importing bloomery.flows points the engines to the checkout's own state folder, into which no test may write.
_environment = dict(os.environ)
importlib.import_module("bloomery.flows")
os.environ.clear()
os.environ.update(_environment)
# Engines read these variables once, at their first computation. If they were set later, tests would compare results of
# two instruction sets.
for name, value in instruction_set().items():
    os.environ.setdefault(name, value)


def environment_for(home: Path, **more: str) -> dict[str, str]:
    """Returns the environment of a user who has set no variable of Bloomery but the state folder."""
    base = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIXES)}
    return {**base, "BLOOMERY_HOME": str(home), "COLUMNS": "100", **more}


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of real data sets beside a developer's checkout. Tests that need it are skipped if it is missing."""
    folder = ROOT.parent / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip("there is no folder of real data sets")
    return folder


@pytest.fixture(scope="session")
def clean_environment() -> Callable[..., dict[str, str]]:
    return environment_for


CreateHome = Callable[[Path], Path]
SharedFolder = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> SharedFolder:
    """`shared_folder(name, make)` returns a folder for all workers of pytest-xdist, which the first caller fills."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        path = shared / f"once-{name}"
        with FileLock(f"{path}.lock"):
            if not (path / "complete").is_file():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                (path / "complete").touch()
        return path

    return folder


@pytest.fixture(scope="session")
def databases(shared_folder: SharedFolder) -> Path:
    """Databases of MLflow and Prefect with empty tables, copied by tests because creating them takes seconds."""

    def make(folder: Path) -> None:
        home = folder / "home"
        environment = environment_for(home, PREFECT_HOME=str(home / "prefect"))
        create_mlflow = "import bloomery.flows; from bloomery.tasks.tracking import mlflow_runs; mlflow_runs.client()"
        commands = (("-c", create_mlflow), ("-m", "prefect", "server", "database", "upgrade", "-y"))
        streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        (home / "prefect").mkdir(parents=True)
        processes = [
            subprocess.Popen([sys.executable, *words], env=environment, cwd=ROOT, **streams) for words in commands
        ]
        for process in processes:
            process.wait(timeout=300)
        for name in ("mlflow", "prefect"):
            with (
                closing(sqlite3.connect(home / name / f"{name}.db")) as created,
                closing(sqlite3.connect(folder / f"{name}.db")) as copy,
            ):
                created.backup(copy)

    return shared_folder("databases", make)


@pytest.fixture(scope="session")
def create_home(databases: Path) -> CreateHome:
    """`create_home(home)` creates a state folder with empty databases, so that a run need not create them."""

    def make(home: Path) -> Path:
        for name in ("mlflow", "prefect"):
            (home / name).mkdir(parents=True)
            shutil.copyfile(databases / f"{name}.db", home / name / f"{name}.db")
        return home

    return make


@pytest.fixture
def home(databases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder for stages that are called in this process."""
    from bloomery.tasks.infrastructure import settings
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.tracking import mlflow_runs

    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIXES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BLOOMERY_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "mlflow").mkdir(parents=True)
    shutil.copyfile(databases / "mlflow.db", tmp_path / "home" / "mlflow" / "mlflow.db")
    settings.settings.cache_clear()
    mlflow_runs.client.cache_clear()
    apply_engine_environment()
    settings.require_state_folder()
    yield tmp_path / "home"
    settings.settings.cache_clear()
    mlflow_runs.client.cache_clear()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def shared_spark(request: pytest.FixtureRequest) -> Iterator[None]:
    """One Spark session for all tests that use Spark in this process, since Java takes seconds to start."""
    yield
    from bloomery.tasks.infrastructure import spark_session

    spark_session.stop_session()


Bloomery = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def foreign_folder(shared_folder: SharedFolder) -> Iterator[Path]:
    """A folder to run commands in. Its modules have the names of installed ones, and none may be imported."""
    folder = shared_folder("foreign", fill_folder)
    yield folder
    assert imported_files(folder) == []  # also by processes that have run on


@pytest.fixture(scope="session")
def bloomery(foreign_folder: Path) -> Bloomery:
    """`bloomery(home, "run", "digits")` runs the command line in its own process, in the foreign folder."""

    def call(
        home: Path, *arguments: str, timeout_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        completed = subprocess.run(
            module_command("bloomery.flows.cli", *arguments),
            env=environment_for(home, **environment),
            cwd=foreign_folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert imported_files(foreign_folder) == [], arguments
        return completed

    return call


@pytest.fixture(scope="session")
def prefect(databases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of one Prefect server for many runs, since starting one takes longer than most runs.

    Its background services run too, so automations fire, paused runs expire, and a worker can run deployments.
    """
    from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server

    folder, port = tmp_path_factory.mktemp("prefect"), find_free_port()
    shutil.copyfile(databases / "prefect.db", folder / "prefect.db")
    command = [
        *module_command("uvicorn", "--factory", "prefect.server.api.server:create_app"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "error"),
    ]
    environment = {
        "PREFECT_HOME": str(folder),
        "PREFECT_UI_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    api = f"http://127.0.0.1:{port}/api"

    with tethered_server(
        command, is_ready=lambda: responds(f"{api}/health"), log=folder / "log", environment=environment
    ) as wait_until_ready:
        wait_until_ready()
        yield api


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("forks")
    environment = environment_for(folder, PREFECT_API_URL="http://127.0.0.1:9/api")  # no server listens there
    process = Forks(environment, folder)
    yield process
    process.close()


@pytest.fixture(scope="session")
def forked_bloomery(
    forks: Forks,
    prefect: str,
    create_home: CreateHome,
    foreign_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bloomery:
    """As `bloomery`, but forked from a process that has imported the engines, and with a shared Prefect server.

    This is faster, but does not test the start of the command line. A new state folder gets empty databases.
    With `forks_children=True`, commands that the command starts are forked too.
    """
    folder, numbers = tmp_path_factory.mktemp("output"), itertools.count()

    def call(
        home: Path, *arguments: str, timeout_s: float = 300, forks_children: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        if not home.exists():
            create_home(home)
        number = next(numbers)
        out, err = folder / f"{number}.out", folder / f"{number}.err"
        variables = environment_for(home, **{"PREFECT_API_URL": prefect, **environment})
        streams = {"out": out, "err": err, "folder": foreign_folder}
        run = forks.start(*arguments, environment=variables, forks_children=forks_children, **streams)
        code = forks.wait(run, timeout_s)
        assert imported_files(foreign_folder) == [], arguments
        return subprocess.CompletedProcess(["bloomery", *arguments], code, out.read_text(), err.read_text())

    return call


_MOVE_PATHS = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1])\n"
    "tables = [('experiments', 'artifact_location'), ('runs', 'artifact_uri'), ('model_versions', 'source'),"
    " ('logged_models', 'artifact_location'), ('model_versions', 'storage_location')]\n"
    "for table, column in tables:\n"
    "    connection.execute(f'update {table} set {column} = replace({column}, ?, ?)', sys.argv[2:4])\n"
    "connection.commit()\n"
)


def copy_of(home: Path, folder: Path) -> Path:
    """Copies the state folder `home` into `folder` and returns the copy."""
    copy = folder / ".bloomery"  # hidden, like the default
    copy_state(home, copy)
    return copy


def copy_state(home: Path, copy: Path) -> None:
    """Copies the content of the state folder `home` into `copy`, and corrects MLflow's absolute paths."""
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns("mlflow.db*"), dirs_exist_ok=True)
    database = copy / "mlflow" / "mlflow.db"
    with (
        closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as source,
        closing(sqlite3.connect(database)) as target,
    ):
        source.backup(target)
    subprocess.run([sys.executable, "-c", _MOVE_PATHS, database, str(home), str(copy)], check=True)


@pytest.fixture(scope="session")
def finished_run(
    shared_folder: SharedFolder, tmp_path_factory: pytest.TempPathFactory, bloomery: Bloomery
) -> tuple[Path, dict[str, Any]]:
    """A state folder in which `bloomery run digits` has completed, and its release. Copy the folder before a change."""

    def make(folder: Path) -> None:
        completed = bloomery(folder / ".bloomery", "run", "digits", "--json")
        assert completed.returncode == 0, completed.stdout + completed.stderr
        (folder / "release.json").write_text(completed.stdout)

    folder = shared_folder("finished", make)
    return copy_of(folder / ".bloomery", tmp_path_factory.mktemp("finished")), _release_in(folder)


@pytest.fixture(scope="session")
def quick_run(
    shared_folder: SharedFolder, tmp_path_factory: pytest.TempPathFactory, forked_bloomery: Bloomery
) -> tuple[Path, dict[str, Any]]:
    """As `finished_run`, of the recipe `digits-quick.yaml`: for tests that run it again and compare."""

    def make(folder: Path) -> None:
        completed = forked_bloomery(folder / ".bloomery", "run", str(QUICK), "--json")
        assert completed.returncode == 0, completed.stdout + completed.stderr
        (folder / "release.json").write_text(completed.stdout)

    folder = shared_folder("quick", make)
    return copy_of(folder / ".bloomery", tmp_path_factory.mktemp("quick")), _release_in(folder)


def _release_in(folder: Path) -> dict[str, Any]:
    release: dict[str, Any] = json.loads((folder / "release.json").read_text())
    return release


@pytest.fixture(scope="session")
def copy_finished_run(finished_run: tuple[Path, dict[str, Any]]) -> Callable[[Path], Path]:
    """`copy_finished_run(folder)` copies the state folder of `finished_run` into `folder` and returns the copy."""
    return lambda folder: copy_of(finished_run[0], folder)


@pytest.fixture
def copy(copy_finished_run: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A copy of the state folder of `finished_run`, which the test may change."""
    return copy_finished_run(tmp_path)
