"""Killed and concurrent runs in one state folder: no output is lost, and none is partial."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from bloomery.flows.run_control.run_liveness import reap_dead_runs
from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server
from tests.conftest import QUICK, copy_of
from tests.forks import Forks
from tests.mlflow_servers import MlflowServers
from tests.mounts import mount
from tests.processes import processes_of, responds, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("ingest", "validate", "prepare", "train", "compress", "choose", "package", "promote")
Environment = Callable[..., dict[str, str]]
CreateHome = Callable[[Path], Path]
FinishedRun = tuple[Path, dict[str, Any]]


def digests(release: dict[str, Any]) -> dict[str, Any]:
    """Returns everything that must be equal between two runs of a recipe on one machine."""
    choice = release["bento"]["choice"]
    trained = choice["candidates"]["trained"]
    dataset = trained["dataset"]
    return {
        "rows": dataset["valid_rows"]["raw_rows"]["digest"],
        "parts": [dataset[part]["sha256"] for part in ("train", "val", "test")],
        "dataset": dataset["digest"],
        "weights": trained["digest"],
        "onnx": [candidate["sha256"] for candidate in choice["candidates"]["candidates"]],
        "bento": release["bento"]["digest"],
    }


def released(home: Path, name: str = "digits") -> dict[str, Any]:
    """Returns the only release of that name, from its record."""
    records = [json.loads(path.read_text())["record"] for path in home.glob("stages/promote/*/record.json")]
    (release,) = [record for record in records if record["name"] == name]
    return release


def states_in_mlflow(home: Path) -> set[str]:
    with closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as connection:
        return {state for (state,) in connection.execute("select status from runs")}


class Runs:
    """Forked runs in one state folder."""

    def __init__(self, forks: Forks, environment: dict[str, str], log: Path) -> None:
        self._forks, self._environment, self._log = forks, environment, log
        log.touch()

    def start(self, *arguments: str) -> int:
        return self._forks.start(*arguments, environment=self._environment, out=self._log, err=self._log)

    def wait(self, pid: int) -> int:
        return self._forks.wait(pid)

    @property
    def output(self) -> str:
        return self._log.read_text()


@pytest.fixture
def runs(forks: Forks, prefect: str, create_home: CreateHome, tmp_path: Path, clean_environment: Environment) -> Runs:
    home = tmp_path / ".bloomery"
    if not home.exists():
        create_home(home)
    return Runs(forks, clean_environment(home, PREFECT_API_URL=prefect), tmp_path / "runs.log")


# tests/tasks/orchestration/test_stage_store.py kills a stage while it writes.
@pytest.mark.parametrize(
    "stages", [("train", "package", "promote"), pytest.param(STAGES, marks=pytest.mark.nightly)], ids=["three", "all"]
)
def test_a_run_killed_in_several_stages_continues_and_ends_with_the_same_digests(
    stages: tuple[str, ...], quick_run: FinishedRun, tmp_path: Path, runs: Runs, prefect: str
) -> None:
    home = tmp_path / ".bloomery"
    killed_stages = set()
    for stage in stages:
        run = runs.start("run", str(QUICK))
        folder, scratch = home / "stages" / stage, home / "stages" / ".tmp"

        def is_reached(run: int = run, stage: str = stage, folder: Path = folder, scratch: Path = scratch) -> bool:
            assert psutil.Process(run).status() != psutil.STATUS_ZOMBIE, runs.output
            return bool(list(scratch.glob(f"{stage}-*"))) or folder.exists()

        wait_for(is_reached, step_s=0.005)
        os.kill(run, signal.SIGKILL)
        assert runs.wait(run) == -signal.SIGKILL
        # A stage of a few milliseconds may end before the kill; then its output is complete.
        if not folder.exists():
            killed_stages.add(stage)
        assert all((output / "record.json").is_file() for output in folder.glob("*"))
        wait_for(lambda: not processes_of(home))
    assert killed_stages >= {"prepare", "train", "compress", "package", "promote"} & set(stages)
    assert runs.wait(runs.start("run", str(QUICK))) == 0, runs.output
    assert digests(released(home)) == digests(quick_run[1])
    assert not list((home / "stages" / ".tmp").iterdir())
    assert "RUNNING" not in states_in_mlflow(home)
    run_ids = [path.stem for path in (home / "runs").glob("*.json")]
    assert len(run_ids) == len(stages)
    with httpx.Client(base_url=prefect, trust_env=False) as api:
        reap_dead_runs(api, home)  # as `bloomery up` does; runs of other state folders are not affected
        states = [api.get(f"/flow_runs/{run}").json()["state_type"] for run in run_ids]
    assert states == ["CRASHED"] * len(stages)


def write_recipe(folder: Path, name: str, **changes: Any) -> str:
    """Writes the recipe `digits-quick` with a new name, changed sections and one candidate. Returns its path."""
    document = yaml.safe_load(QUICK.read_text())
    for section, values in {"compression": {"candidates": [{"name": "fp32"}]}, **changes}.items():
        document[section] = {**document[section], **values}
    target = folder / f"{name}.yaml"
    target.write_text(yaml.safe_dump({**document, "name": name}))
    return str(target)


def assert_consistent(home: Path, names: list[str], expected: dict[str, Any], bloomery: Callable[..., Any]) -> None:
    """Asserts that every recipe has one version, a champion, and that `digits` has the expected digests."""
    concurrent = digests(released(home))
    assert [concurrent[name] for name in ("rows", "parts", "dataset", "weights")] == [
        expected[name] for name in ("rows", "parts", "dataset", "weights")
    ]
    assert concurrent["onnx"] == expected["onnx"][:1]
    for name in names:
        versions = json.loads(bloomery(home, "show", name, "--json").stdout)["versions"]
        assert [(version["version"], version["aliases"]) for version in versions] == [(1, ["champion"])]
    assert states_in_mlflow(home) == {"FINISHED"}
    assert not list((home / "stages" / ".tmp").iterdir())
    assert not processes_of(home)


def test_two_concurrent_runs_end_and_leave_a_consistent_registry(
    quick_run: FinishedRun, tmp_path: Path, runs: Runs, forked_bloomery: Callable[..., Any]
) -> None:
    recipes = [
        write_recipe(tmp_path, "digits"),
        write_recipe(tmp_path, "one-epoch", training={"epochs": 1}, gates={"min_accuracy": 0}),
    ]
    pids = [runs.start("run", recipe) for recipe in recipes]
    assert [runs.wait(pid) for pid in pids] == [0, 0], runs.output
    assert "database is locked" not in runs.output.lower()
    assert_consistent(tmp_path / ".bloomery", ["digits", "one-epoch"], digests(quick_run[1]), forked_bloomery)


@pytest.mark.nightly  # each day two runs share one Prefect server and one database of MLflow
@pytest.mark.parametrize("num", [2, 4])
def test_concurrent_runs_with_servers_of_their_own_leave_a_consistent_registry(
    num: int,
    quick_run: FinishedRun,
    tmp_path: Path,
    forked_bloomery: Callable[..., Any],
    clean_environment: Environment,
) -> None:
    """Each run starts its own Prefect server, and all use one database. Of four runs, two are of the same recipe."""
    home = tmp_path / ".bloomery"
    digits_recipe = write_recipe(tmp_path, "digits")
    one_epoch, two_epochs = (
        write_recipe(tmp_path, name, training={"epochs": epochs}, gates={"min_accuracy": 0})
        for name, epochs in (("one-epoch", 1), ("two-epochs", 2))
    )
    recipes = [digits_recipe, one_epoch, digits_recipe, two_epochs][:num]
    runs = []
    for number, recipe in enumerate(recipes):
        log = (tmp_path / f"run-{number}.log").open("wb")
        command = [sys.executable, "-m", "bloomery.flows.cli", "run", recipe]
        runs.append(subprocess.Popen(command, env=clean_environment(home), cwd=ROOT, stdout=log, stderr=log))
    exit_codes = [run.wait(timeout=400) for run in runs]
    logs = {path: path.read_text(errors="replace") for path in (*tmp_path.glob("run-*.log"), *home.glob("logs/*"))}
    assert exit_codes == [0] * num, logs
    assert [path for path, text in logs.items() if "database is locked" in text.lower()] == []
    assert_consistent(home, sorted({Path(recipe).stem for recipe in recipes}), digests(quick_run[1]), forked_bloomery)
    for database in ("mlflow/mlflow.db", "prefect/prefect.db"):
        with closing(sqlite3.connect(home / database)) as connection:
            assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    "stages", [("train",), pytest.param(("train", "compress"), marks=pytest.mark.nightly)], ids=["train", "both"]
)
def test_a_run_waits_for_an_mlflow_server_that_is_killed(
    stages: tuple[str, ...],
    quick_run: FinishedRun,
    tmp_path: Path,
    forks: Forks,
    prefect: str,
    databases: Path,
    clean_environment: Environment,
) -> None:
    """The user's own MLflow server; under `bloomery up`, runs write to the database directly."""
    home, folder = tmp_path / ".bloomery", tmp_path / "mlflow"
    folder.mkdir()
    shutil.copyfile(databases / "mlflow.db", folder / "mlflow.db")
    home.mkdir()
    servers = MlflowServers(folder, clean_environment(home, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"))
    # The client of MLflow waits 2, 4, 8, … seconds before it repeats a request, by default twice as long.
    variables = {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1", "MLFLOW_TRACKING_URI": servers.url}
    runs = Runs(forks, clean_environment(home, PREFECT_API_URL=prefect, **variables), tmp_path / "runs.log")

    try:
        servers.start()
        run = runs.start("run", write_recipe(tmp_path, "digits"))
        for stage in stages:
            wait_for(lambda stage=stage: list((home / "stages" / ".tmp").glob(f"{stage}-*")), step_s=0.01)
            servers.kill()
            servers.await_failed_request()
            assert not (home / "stages" / stage).exists(), "the stage had ended before the kill"
            servers.start()
        assert runs.wait(run) == 0, runs.output
    finally:
        servers.close()
    assert digests(released(home))["weights"] == digests(quick_run[1])["weights"]
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        assert {state for (state,) in connection.execute("select status from runs")} == {"FINISHED"}
        assert connection.execute("select version from model_versions").fetchall() == [(1,)]


@pytest.fixture
def disk(tmp_path: Path, quick_run: FinishedRun) -> Iterator[Path]:
    """A small disk with a finished state folder, mounted at `tmp_path / ".bloomery"`."""
    disk, home = tmp_path / "disk", copy_of(quick_run[0], tmp_path)
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=400m", "tmpfs", str(disk)):
        pytest.skip("this user may not mount a disk")
    try:
        shutil.copytree(home, disk / "state")
        shutil.rmtree(home)
        home.mkdir()
        assert mount("--bind", str(disk / "state"), str(home))
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(home)], capture_output=True)
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def champion(disk: Path, tmp_path: Path, clean_environment: Environment) -> Iterator[Callable[[], str]]:
    """Requests a prediction of the served champion, and returns the bento that responded."""
    port = find_free_port()
    command = [sys.executable, "-m", "bloomery.flows.cli", "serve", "digits", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"

    def ask() -> str:
        rows = {"rows": [{"image": [0] * 64}]}
        response = httpx.post(f"{url}/predict", json=rows, trust_env=False, timeout=30)
        assert response.status_code == 200, response.text
        return str(response.json()["model"])

    environment = clean_environment(tmp_path / ".bloomery")
    with tethered_server(
        command, is_ready=lambda: responds(f"{url}/readyz"), log=tmp_path / "serve.log", environment=environment
    ) as wait_until_ready:
        wait_until_ready()
        yield ask


def fill_disk(disk: Path) -> Path:
    """Fills the disk completely. Returns the file that fills it."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(100_000))
    with contextlib.suppress(OSError), (disk / "filler").open("ab", buffering=0) as stream:
        while True:
            stream.write(b"0")
    return disk / "filler"


def test_a_full_disk_a_read_only_folder_and_a_lost_share_are_reported_and_nothing_is_lost(
    quick_run: FinishedRun,
    disk: Path,
    tmp_path: Path,
    champion: Callable[[], str],
    clean_environment: Environment,
    runs: Runs,
) -> None:
    home, tag = tmp_path / ".bloomery", quick_run[1]["bento"]["tag"]
    document = yaml.safe_load(QUICK.read_text())
    document["training"]["checkpoints"] = {"every_steps": 20}  # changes no weights, but requires a new training
    recipe = tmp_path / "digits.yaml"
    recipe.write_text(yaml.safe_dump(document))
    records = set(home.glob("stages/*/*/record.json"))

    def steps() -> list[Path]:
        return sorted(home.glob("checkpoints/*/step-*"))

    # The disk becomes full during a training.
    command = [sys.executable, "-m", "bloomery.flows.cli", "run", str(recipe)]
    run = subprocess.Popen(command, env=clean_environment(home), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(steps, step_s=0.01)
    filler = fill_disk(disk)
    output = run.communicate(timeout=120)[1]
    assert run.returncode == 1, output
    for words in ("StateUnwritable: ", "free some space", "finished stages are reused"):
        assert words in output, output
    assert re.search(r"\(\d MB free\)", output), output  # the partial output has been removed by then
    assert champion() == tag
    assert not list((home / "stages" / ".tmp").iterdir())
    assert [path.name for path in home.glob("checkpoints/*/*")] == [steps()[0].name]
    filler.unlink()

    # The folder is read-only.
    read_only = tmp_path / "read-only"
    read_only.mkdir()
    assert mount("--bind", str(disk / "state"), str(read_only))
    try:
        assert mount("-o", "remount,bind,ro", str(read_only))
        completed = subprocess.run(command, env=clean_environment(read_only), cwd=ROOT, capture_output=True, text=True)
    finally:
        subprocess.run(["umount", str(read_only)], check=True)
    assert completed.returncode == 1, completed.stderr
    assert "StateUnwritable: the state folder cannot be written: Read-only file system" in completed.stderr

    # The share is lost during a training, and comes back.
    last_step = steps()[0].name
    run_id = runs.start("run", str(recipe))
    wait_for(lambda: steps()[0].name > last_step, step_s=0.01)
    subprocess.run(["umount", "-l", str(home)], check=True)
    assert runs.wait(run_id) == 1
    output = runs.output
    assert "ShareLost: the state folder is gone, and was there when the run began" in output, output
    assert champion() == tag
    assert mount("--bind", str(disk / "state"), str(home))

    # Earlier outputs are still there, and the run ends with the same digests.
    assert records <= set(home.glob("stages/*/*/record.json"))
    assert runs.wait(runs.start("run", str(recipe))) == 0, runs.output
    assert digests(released(home)) == digests(quick_run[1])
    assert champion() == tag
    assert "RUNNING" not in states_in_mlflow(home)
