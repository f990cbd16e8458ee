"""What tests of every room share: state folders of their own, and the command line as a user calls it."""

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
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadFileScheduling

from bloomery.tasks.infrastructure.device import instruction_set
from tests import examples  # noqa: F401 - loads hypothesis' profile before tests are collected
from tests.forks import Forks
from tests.living import answers

if TYPE_CHECKING:
    from bloomery.data_contracts.odcs.contract import Contract
    from bloomery.data_contracts.records.records import Release

ROOT = Path(__file__).resolve().parent.parent
LONGEST = ROOT / "tests" / "longest.txt"
QUICK = ROOT / "tests" / "digits-quick.yaml"
OURS = ("BLOOMERY_", "PREFECT_", "MLFLOW_", "BENTOML_", "GX_", "MPL", "ATEN_", "ONEDNN_", "MKL_CBWR")

if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = __file__  # PySpark takes a worker of pytest-xdist for doctests, and ends it

# Spark's Java lives for seconds here, in which to optimise what it runs costs more than it gains.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
# The package of flows names this folder's state folder to the engines. No test may write there, nor its processes.
_before = dict(os.environ)
importlib.import_module("bloomery.flows")
os.environ.clear()
os.environ.update(_before)
# Engines ask for these once, at their first arithmetic. Set later, tests would compare bits of two instruction sets.
for name, value in instruction_set().items():
    os.environ.setdefault(name, value)


def environment_for(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user who has set nothing but the state folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, "BLOOMERY_HOME": str(home), "COLUMNS": "100", **more}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, then others with slow tests, so that both cores end at the same time.

    pytest-xdist keeps to this with --no-loadscope-reorder; else files with many tests would come first.
    """
    longest = {ROOT / line: place for place, line in enumerate(LONGEST.read_text().split())}
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: (longest.get(item.path, len(longest)), item.path not in slow))  # stable within a file


class OneSpark(LoadFileScheduling):
    """Gives a worker one file after another, and one of them all tests that use Spark in its process."""

    def _split_scope(self, nodeid: str) -> str:
        return "spark" if "::test_spark_" in nodeid else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneSpark:
    return OneSpark(config, log)


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of real data sets that lies beside a developer's checkout; tests that need it are skipped without."""
    folder = ROOT.parent / "shared" / "datasets"
    if not folder.is_dir():
        pytest.skip("the folder of real data sets is not here")
    return folder


@pytest.fixture(scope="session")
def clean_environment() -> Callable[..., dict[str, str]]:
    return environment_for


Fresh = Callable[[Path], Path]
Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)` is a folder that all workers of pytest-xdist share; the first one that asks fills it."""
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
def databases(once: Once) -> Path:
    """The databases of MLflow and Prefect with their tables and no rows, which take seconds to create."""

    def make(folder: Path) -> None:
        home = folder / "home"
        environment = environment_for(home, PREFECT_HOME=str(home / "prefect"))
        for words in (("bloomery.flows.cli", "show", "none"), ("prefect", "server", "database", "upgrade", "-y")):
            subprocess.run([sys.executable, "-m", *words], env=environment, cwd=ROOT, capture_output=True)
        for name in ("mlflow", "prefect"):
            with (
                closing(sqlite3.connect(home / name / f"{name}.db")) as created,
                closing(sqlite3.connect(folder / f"{name}.db")) as copy,
            ):
                created.backup(copy)

    return once("databases", make)


@pytest.fixture(scope="session")
def fresh(databases: Path) -> Fresh:
    """`fresh(home)` makes a state folder at `home` that holds empty databases, so that a run need not create them."""

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
    for name in [name for name in os.environ if name.startswith(OURS)]:
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
def one_spark(request: pytest.FixtureRequest) -> Iterator[None]:
    """For tests that use Spark in this process: they share one, since a Java takes long to start."""
    yield
    from bloomery.tasks.infrastructure import spark_session

    spark_session.stop_session()


Bloomery = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def bloomery() -> Bloomery:
    """`bloomery(home, "run", "digits")`: the command line in a process of its own."""

    def call(
        home: Path, *arguments: str, timeout_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bloomery.flows.cli", *arguments],
            env=environment_for(home, **environment),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return call


@pytest.fixture(scope="session")
def prefect(databases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of one Prefect server for many runs: to start one for each takes longer than most of what they do."""
    from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server

    folder, port = tmp_path_factory.mktemp("prefect"), find_free_port()
    shutil.copyfile(databases / "prefect.db", folder / "prefect.db")
    command = [
        *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "error"),
    ]
    environment = {"PREFECT_HOME": str(folder), "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_UI_ENABLED": "false"}
    api = f"http://127.0.0.1:{port}/api"

    with tethered_server(
        command, is_ready=lambda: answers(f"{api}/health"), log=folder / "log", environment=environment
    ) as wait_until_ready:
        wait_until_ready()
        yield api


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("forks")
    made = Forks(environment_for(folder, PREFECT_API_URL="http://127.0.0.1:9/api"))  # which nobody asks
    yield made
    made.close()


@pytest.fixture(scope="session")
def sharing(forks: Forks, prefect: str, fresh: Fresh, tmp_path_factory: pytest.TempPathFactory) -> Bloomery:
    """`bloomery`, forked and with the Prefect server that tests share: quicker, and only its end is as a user's.

    A state folder that is not there yet gets empty databases.
    """
    folder, numbers = tmp_path_factory.mktemp("told"), itertools.count()

    def call(
        home: Path, *arguments: str, timeout_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        if not home.exists():
            fresh(home)
        number = next(numbers)
        out, err = folder / f"{number}.out", folder / f"{number}.err"
        stated = environment_for(home, **{"PREFECT_API_URL": prefect, **environment})
        code = forks.wait(forks.start(*arguments, environment=stated, out=out, err=err), timeout_s)
        return subprocess.CompletedProcess(["bloomery", *arguments], code, out.read_text(), err.read_text())

    return call


_MOVE = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1])\n"
    "tables = [('experiments', 'artifact_location'), ('runs', 'artifact_uri'), ('model_versions', 'source'),"
    " ('logged_models', 'artifact_location'), ('model_versions', 'storage_location')]\n"
    "for table, column in tables:\n"
    "    connection.execute(f'update {table} set {column} = replace({column}, ?, ?)', sys.argv[2:4])\n"
    "connection.commit()\n"
)


def copy_of(home: Path, folder: Path) -> Path:
    """A state folder below `folder` like the one at `home`, MLflow's absolute paths moved with it."""
    copy = folder / ".bloomery"  # hidden, like the default
    copy_state(home, copy)
    return copy


def copy_state(home: Path, copy: Path) -> None:
    """Puts all that the state folder `home` holds into `copy`, MLflow's absolute paths moved with it."""
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns("mlflow.db*"), dirs_exist_ok=True)
    database = copy / "mlflow" / "mlflow.db"
    with (
        closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as source,
        closing(sqlite3.connect(database)) as target,
    ):
        source.backup(target)
    subprocess.run([sys.executable, "-c", _MOVE, database, str(home), str(copy)], check=True)


@pytest.fixture(scope="session")
def finished(once: Once, tmp_path_factory: pytest.TempPathFactory, bloomery: Bloomery) -> tuple[Path, dict[str, Any]]:
    """A state folder in which `bloomery run digits` has ended, and its release. Copy the folder before a change."""

    def make(folder: Path) -> None:
        ended = bloomery(folder / ".bloomery", "run", "digits", "--json")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        (folder / "release.json").write_text(ended.stdout)

    folder = once("finished", make)
    return copy_of(folder / ".bloomery", tmp_path_factory.mktemp("finished")), _release_in(folder)


@pytest.fixture(scope="session")
def quick(once: Once, tmp_path_factory: pytest.TempPathFactory, sharing: Bloomery) -> tuple[Path, dict[str, Any]]:
    """Like `finished`, of the recipe `digits-quick.yaml`: for tests that run it again and compare."""

    def make(folder: Path) -> None:
        ended = sharing(folder / ".bloomery", "run", str(QUICK), "--json")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        (folder / "release.json").write_text(ended.stdout)

    folder = once("quick", make)
    return copy_of(folder / ".bloomery", tmp_path_factory.mktemp("quick")), _release_in(folder)


def _release_in(folder: Path) -> dict[str, Any]:
    release: dict[str, Any] = json.loads((folder / "release.json").read_text())
    return release


@pytest.fixture(scope="session")
def copied(finished: tuple[Path, dict[str, Any]]) -> Callable[[Path], Path]:
    """`copied(folder)` is a finished state folder below `folder`."""
    return lambda folder: copy_of(finished[0], folder)


@pytest.fixture
def copy(copied: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A finished state folder to break."""
    return copied(tmp_path)


@pytest.fixture(scope="session")
def contract_of() -> Callable[..., Contract]:
    """Makes a contract of the given properties, and of the table's own keys, as they would stand in a file."""

    def make(*properties: dict[str, Any], **table: Any) -> Contract:
        from bloomery.data_contracts.odcs.contract import Contract

        top = {name: table.pop(name) for name in ("slaProperties", "name", "references") if name in table}
        return Contract.model_validate(
            {
                "apiVersion": "v3.1.0",
                "kind": "DataContract",
                "id": "made-for-a-test",
                "name": "made",
                "version": "1.0.0",
                "status": "active",
                "schema": [{"name": "rows", "properties": list(properties), **table}],
                **top,
            }
        )

    return make


@pytest.fixture(scope="session")
def release() -> Release:
    """A release made up for tests, with every record that it was made from."""
    from bloomery.data_contracts.odcs.contract import read_contract
    from bloomery.data_contracts.records.records import (
        Bento,
        Candidate,
        Candidates,
        Choice,
        Dataset,
        EncodedSplit,
        Interval,
        Latency,
        RawRows,
        Release,
        TrainedNetwork,
        ValidRows,
        Verdict,
    )
    from bloomery.data_contracts.records.tensor_layout import Layout

    rows = RawRows(
        uri="ingest/rows.parquet",
        source="sklearn:digits",
        num_rows=1797,
        malformed_uri="ingest/malformed.parquet",
        num_malformed=0,
        is_text=False,
        digest="d-rows",
    )
    checked = ValidRows(
        uri="validate/rows.parquet",
        quarantine_uri="validate/quarantine.parquet",
        report_uri="validate/report.html",
        num_rows=1790,
        num_quarantined=7,
        violations=(("id: must be unique", 7),),
        fresh_until=None,
        contract=read_contract(ROOT / "data_contracts" / "contracts" / "digits.odcs.yaml"),
        raw_rows=rows,
        digest="d-checked",
    )
    dataset = Dataset(
        train=EncodedSplit(uri="train.parquet", sha256="a", num_rows=1253),
        val=EncodedSplit(uri="val.parquet", sha256="b", num_rows=179),
        test=EncodedSplit(uri="test.parquet", sha256="c", num_rows=358),
        encoder_uri="encoder.json",
        key="id",
        label="label",
        inputs=("image",),
        task="classification",
        layout=Layout(kind="image", shape=(1, 8, 8)),
        classes=(0, "one"),
        test_rows_uri="validate/rows.parquet",
        num_dropped=0,
        valid_rows=checked,
        digest="d-dataset",
    )
    trained = TrainedNetwork(
        uri="weights.safetensors",
        network_uri="network.json",
        run_id="run",
        num_parameters=12345,
        epochs=3,
        val_score=0.5,
        processor="1 thread(s)",
        dataset=dataset,
        digest="d-trained",
    )
    candidate = Candidate(
        name="int8",
        uri="int8.onnx",
        sha256="e",
        run_id="run",
        size_bytes=1,
        zstd_bytes=1,
        num_parameters=12345,
        num_nonzero=12000,
        integer_share=0.0,
        score=Interval(value=0.5, low=0.4, high=0.6),
        degradation=Interval(value=0.0, low=-0.1, high=0.1),
        latencies=(
            Latency(
                batch_size=1,
                num_rounds=300,
                p50_ms=1.0,
                p90_ms=1.5,
                p95_ms=1.7,
                p99_ms=2.0,
                ratio=Interval(value=1.0, low=1.0, high=1.0),
                tail_ratio=Interval(value=1.0, low=1.0, high=1.0),
            ),
        ),
        parity_error=1e-7,
        predictions_uri="answers.parquet",
    )
    options = Candidates(candidates=(candidate, candidate), baseline="int8", trained=trained, digest="d-options")
    verdict = Verdict(name="int8", rank=1, passed=False, reasons=("too large",))
    chosen = Choice(
        candidate=candidate,
        verdicts=(verdict,),
        run_id="run",
        plot_uri="choose/candidates.png",
        candidates=options,
        digest="d-chosen",
    )
    bento = Bento(tag="digits:abc", files=(("model.onnx", "e"),), choice=chosen, digest="d-bento")
    return Release(
        name="digits",
        version=3,
        alias="champion",
        num_smoke_test_rows=100,
        example="id 5: 3 is 3",
        replaced_version=None,
        bento=bento,
        digest="d-release",
    )
