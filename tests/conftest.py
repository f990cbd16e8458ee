"""What tests of every room share: state folders of their own, and the command line as a user calls it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from bloomery.tasks.infrastructure.device import instruction_set
from tests.forks import Forks
from tests.living import answers

if TYPE_CHECKING:
    from bloomery.data_contracts.odcs.contract import Contract
    from bloomery.data_contracts.records.records import Release

ROOT = Path(__file__).resolve().parent.parent
OURS = ("BLOOMERY_", "PREFECT_", "MLFLOW_", "BENTOML_", "GX_", "MPL", "ATEN_", "ONEDNN_", "MKL_CBWR")

if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = __file__  # PySpark takes a worker of pytest-xdist for doctests, and ends it

# Engines ask for these once, at their first arithmetic. Set later, tests would compare bits of two instruction sets.
for name, value in instruction_set().items():
    os.environ.setdefault(name, value)


def environment_for(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user who has set nothing but the state folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, "BLOOMERY_HOME": str(home), "COLUMNS": "100", **more}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that at the end quick ones keep both cores at work.

    pytest-xdist keeps to this with --no-loadscope-reorder; else files with many tests would come first.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)  # which keeps the order within both


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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder for stages that are called in this process."""
    from bloomery.tasks.infrastructure import settings
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.tracking import mlflow_runs

    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BLOOMERY_HOME", str(tmp_path / "home"))
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
def one_spark() -> Iterator[None]:
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
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of one Prefect server for many runs: to start one for each takes longer than most of what they do."""
    from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server

    folder, port = tmp_path_factory.mktemp("prefect"), find_free_port()
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
def sharing(forks: Forks, prefect: str, tmp_path_factory: pytest.TempPathFactory) -> Bloomery:
    """`bloomery`, forked and with the Prefect server that tests share: quicker, and only its end is as a user's."""
    folder, numbers = tmp_path_factory.mktemp("told"), itertools.count()

    def call(
        home: Path, *arguments: str, timeout_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
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
    shutil.copytree(home, copy)
    subprocess.run([sys.executable, "-c", _MOVE, copy / "mlflow" / "mlflow.db", str(home), str(copy)], check=True)
    return copy


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, bloomery: Bloomery) -> tuple[Path, dict[str, Any]]:
    """A state folder in which `bloomery run digits` has ended, and its release. Copy the folder before a change."""
    base = tmp_path_factory.getbasetemp()
    once = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-once"  # for all workers
    with FileLock(f"{once}.lock"):
        if not (once / "release.json").is_file():
            ended = bloomery(once / ".bloomery", "run", "digits", "--json")
            assert ended.returncode == 0, ended.stdout + ended.stderr
            (once / "release.json").write_text(ended.stdout)
    home = copy_of(once / ".bloomery", tmp_path_factory.mktemp("finished"))
    return home, json.loads((once / "release.json").read_text())


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
        CheckedRows,
        Chosen,
        Dataset,
        Interval,
        Latency,
        Options,
        Part,
        RawRows,
        Release,
        Trained,
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
    checked = CheckedRows(
        uri="validate/rows.parquet",
        quarantine_uri="validate/quarantine.parquet",
        report_uri="validate/report.html",
        num_rows=1790,
        num_quarantined=7,
        checked=(("id: must be unique", 7),),
        fresh_until=None,
        contract=read_contract(ROOT / "data_contracts" / "contracts" / "digits.odcs.yaml"),
        rows=rows,
        digest="d-checked",
    )
    dataset = Dataset(
        train=Part(uri="train.parquet", sha256="a", num_rows=1253),
        val=Part(uri="val.parquet", sha256="b", num_rows=179),
        test=Part(uri="test.parquet", sha256="c", num_rows=358),
        encoder_uri="encoder.json",
        key="id",
        label="label",
        inputs=("image",),
        task="classification",
        layout=Layout(kind="image", shape=(1, 8, 8)),
        classes=(0, "one"),
        test_rows_uri="validate/rows.parquet",
        num_dropped=0,
        checked=checked,
        digest="d-dataset",
    )
    trained = Trained(
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
        worse=Interval(value=0.0, low=-0.1, high=0.1),
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
        answers_uri="answers.parquet",
    )
    options = Options(candidates=(candidate, candidate), baseline="int8", trained=trained, digest="d-options")
    verdict = Verdict(name="int8", rank=1, passed=False, reasons=("too large",))
    chosen = Chosen(
        candidate=candidate,
        verdicts=(verdict,),
        run_id="run",
        picture_uri="choose/candidates.png",
        options=options,
        digest="d-chosen",
    )
    bento = Bento(tag="digits:abc", files=(("model.onnx", "e"),), chosen=chosen, digest="d-bento")
    return Release(
        name="digits",
        version=3,
        alias="champion",
        num_asked=100,
        example="id 5: 3 is 3",
        replaced_version=None,
        bento=bento,
        digest="d-release",
    )
