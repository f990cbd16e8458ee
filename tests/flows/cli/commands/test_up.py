"""`bloomery up`: servers, worker and endpoints start, survive kills, and leave no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from bloomery.flows.recipe.recipe import RECIPES, bundled_recipes
from bloomery.tasks.infrastructure.service_status import find_processes, read_service_status
from bloomery.tasks.infrastructure.tethered_process import find_free_port
from tests.processes import wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[4]
STAGES = ("ingest", "validate", "prepare", "train", "compress", "choose", "package", "promote")
DIGESTS = ("data.digest", "weights.sha256", "bento")
QUICK: dict[str, Any] = {
    "training": {"epochs": 40, "checkpoints": {"every_steps": 20}},
    "compression": {
        "candidates": [{"name": "fp32"}, {"name": "pruned", "prune": {"ratio": 0.5}}],
        "fine_tune": {"epochs": 10, "learning_rate": 0.002},
        "latency_rounds": 20,
    },
    "budget": {"accuracy_drop": 1.0, "size_bytes": 1_000_000, "latency_ms": 1000},
    "gates": {"min_accuracy": 0.5, "champion_drop": 1.0},
}


@pytest.fixture(scope="module")
def home(copy_finished_run: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_finished_run(tmp_path_factory.mktemp("up"))


@pytest.fixture(scope="module")
def ports() -> tuple[str, ...]:
    stated = (("--prefect-port", find_free_port()), ("--mlflow-port", find_free_port()), ("--port", find_free_port()))
    return tuple(str(word) for pair in stated for word in pair)


@pytest.fixture(scope="module")
def call(home: Path, bloomery: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Returns a command's JSON document."""

    def call(*arguments: str) -> dict[str, Any]:
        ended = bloomery(home, *arguments, "--json")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return json.loads(ended.stdout)

    return call


@pytest.fixture(scope="module")
def standing(home: Path, call: Callable[..., Any], ports: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    yield call("up", *ports)
    call("down")
    assert not find_processes(home)


@pytest.fixture(scope="module")
def undisturbed(
    copy_finished_run: Callable[[Path], Path],
    forked_bloomery: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], dict[str, Any]]:
    """Runs `QUICK` in a state folder where nothing is killed."""
    home = copy_finished_run(tmp_path_factory.mktemp("undisturbed"))
    recipe = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    for section, stated in QUICK.items():
        recipe[section] = {**recipe.get(section, {}), **stated}
    (home.parent / "quick.yaml").write_text(yaml.safe_dump(recipe))

    def run() -> dict[str, Any]:
        ended = forked_bloomery(home, "run", str(home.parent / "quick.yaml"))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        found: dict[str, Any] = json.loads(forked_bloomery(home, "show", "digits@champion", "--json").stdout)
        return found

    return run


class Asked:
    """Sends requests repeatedly; records which models responded, and failures."""

    def __init__(self, url: str) -> None:
        self.models: list[str] = []
        self.failures: list[str] = []
        self._ended = threading.Event()
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30)
        document = self._client.get("/openapi.json").json()
        self._body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asked:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def _ask(self) -> None:
        while not self._ended.wait(0.2):
            try:
                answered = self._client.post("/predict", json=self._body)
                answered.raise_for_status()
                self.models.append(answered.json()["model"])
            except httpx.HTTPError as failure:
                self.failures.append(repr(failure))


@pytest.fixture
def asked(standing: dict[str, Any]) -> Iterator[Asked]:
    with Asked(servers(standing)["digits"]["url"]) as asking:
        yield asking


def look(home: Path) -> dict[str, Any]:
    """Returns the status of all services, without starting a process."""
    standing = read_service_status(home)
    assert standing is not None
    return servers({"is_up": True, **standing.model_dump()})


def servers(document: dict[str, Any]) -> dict[str, Any]:
    assert document["is_up"]
    return {server["name"]: server for server in document["servers"]}


def client(document: dict[str, Any]) -> httpx.Client:
    return httpx.Client(base_url=f"{servers(document)['prefect']['url']}/api", trust_env=False, timeout=30)


def test_servers_worker_and_endpoints_are_up_and_recipes_are_registered(
    standing, call, bloomery, ports, tmp_path
) -> None:
    found = servers(standing)
    assert {name: server["state"] for name, server in found.items()} == dict.fromkeys(found, "up")
    assert set(found) == {"prefect", "mlflow", "worker", "digits"}
    for page in (found["prefect"]["url"], found["mlflow"]["url"], f"{found['digits']['url']}/readyz"):
        assert httpx.get(page, trust_env=False, follow_redirects=True).is_success, page
    with client(standing) as api:
        deployments = {
            one["name"]: one
            for one in api.post("/deployments/filter", json={"flows": {"name": {"any_": ["pipeline"]}}}).json()
        }
        watched = api.post("/deployments/filter", json={"flows": {"name": {"any_": ["monitor"]}}}).json()
        automations = [one["name"] for one in api.post("/automations/filter", json={}).json()]
    assert set(deployments) == {one["name"] for one in watched} == set(bundled_recipes())
    digits = deployments["digits"]
    assert [(one["schedule"]["cron"], one["active"]) for one in digits["schedules"]] == [("0 3 * * *", True)]
    assert digits["global_concurrency_limit"]["limit"] == 1
    assert "epochs" in json.dumps(digits["parameter_openapi_schema"])
    assert automations.count("mark dead runs as crashed") == 1

    again = servers(call("up", *ports))
    assert {name: server["pid"] for name, server in again.items()} == {n: s["pid"] for n, s in found.items()}
    assert servers(call("status")) == again
    elsewhere = bloomery(tmp_path / "other", "up", *ports, "--json")
    told = json.loads(elsewhere.stdout)
    assert (elsewhere.returncode, told["error"]) == (1, "PortInUse")
    assert f"pid {found['prefect']['pid']}" in told["where"] or "python" in told["where"]


def test_prefect_commands_deploy_the_recipes_and_run_one(standing, home, call, clean_environment) -> None:
    """Uses the running server and worker. Meanwhile the endpoint is killed."""
    endpoint = servers(standing)["digits"]
    os.kill(endpoint["pid"], signal.SIGKILL)
    environment = clean_environment(
        home, PREFECT_API_URL=f"{servers(standing)['prefect']['url']}/api", PREFECT_HOME=str(home / "prefect")
    )
    program = str(Path(sys.executable).with_name("prefect"))
    for words in (
        ("deploy", "--prefect-file", "deployments/prefect.yaml", "--all"),
        ("deployment", "run", "pipeline/digits", "--watch", "--watch-timeout", "300"),
    ):
        ended = subprocess.run(
            [program, "--no-prompt", *words], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    with client(standing) as api:
        runs = api.post("/flow_runs/filter", json={}).json()
        tasks = api.post("/task_runs/filter", json={}).json()
        artifacts = api.post("/artifacts/latest/filter", json={}).json()
    deployed = [run for run in runs if run["deployment_id"] is not None]
    assert [run["name"].rpartition(" ")[0] for run in deployed if run["state_type"] == "COMPLETED"] == ["digits v1"]
    assert [run for run in deployed if run["state_type"] == "SCHEDULED"], "the schedule made no runs"
    assert {run["name"] for run in tasks if run["state_type"] == "COMPLETED"} == set(STAGES)
    assert {one["key"] for one in artifacts} >= {"contract-report", "mlflow-run", "candidates", "bento", "release"}
    again = servers(call("status"))["digits"]
    assert (again["state"], again["restarts"]) == ("up", 1)
    assert again["pid"] != endpoint["pid"]


def test_a_run_survives_kills_and_ends_like_an_undisturbed_one(standing, home, call, undisturbed, asked) -> None:
    with client(standing) as api:
        named = api.get("/deployments/name/pipeline/digits").json()
        started = api.post(f"/deployments/{named['id']}/create_flow_run", json={"parameters": QUICK})
        assert started.is_success, started.text
        run = started.json()["id"]
        kill_the_run_and_its_worker(home, run)
        latest = newest_step(home)
        wait_for(lambda: steps(home) and newest_step(home) > latest, what="training that goes on", timeout_s=240)
        assert told_of(api, run)["run_count"] == 2
    for stage in ("train", "compress"):
        wait_for(
            lambda stage=stage: list((home / "stages" / ".tmp").glob(f"{stage}-*")),
            what=f"the stage {stage}",
            timeout_s=240,
        )
        before = look(home)
        for name in ("prefect", "mlflow"):
            os.kill(before[name]["pid"], signal.SIGKILL)
        assert list((home / "stages" / ".tmp").glob(f"{stage}-*")), "the stage had ended before the blow"
        wait_for(lambda before=before: all_up(home, before), what="servers that stand again", timeout_s=180)
    with client(standing) as api:
        found = wait_for(lambda: ended(api, run), what="the end of the run", timeout_s=240)
        states = [one["name"] for one in api.get("/flow_run_states/", params={"flow_run_id": run}).json()]
        running = api.post("/flow_runs/filter", json={"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}).json()
    assert (found["state_type"], found["run_count"], running) == ("COMPLETED", 2, []), found["state"]["message"]
    assert {"Crashed", "AwaitingRetry"} <= set(states), states
    assert not list((home / "runs").glob("*.json"))
    assert not list((home / "stages" / ".tmp").iterdir())
    after = servers(call("status"))
    assert after["worker"]["restarts"] == 1
    version = call("show", "digits@champion")
    assert version["version"] == 2
    assert found["name"].startswith("digits v2 r"), found["name"]
    # The kills leave no trace in the result.
    wanted = undisturbed()
    assert version["bento"] == wanted["bento"]
    assert {name: version["tags"][name] for name in DIGESTS} == {name: wanted["tags"][name] for name in DIGESTS}
    # The endpoint switched to the new champion, and the previous one served until then.
    wait_for(lambda: asked.models[-1] == version["bento"], what="an endpoint that follows", timeout_s=30)
    assert asked.failures == []
    assert len(set(asked.models)) == 2


def kill_the_run_and_its_worker(home: Path, run: str) -> None:
    wait_for(lambda: steps(home), what="a checkpoint")
    work = json.loads((home / "runs" / f"{run}.json").read_text())
    os.kill(look(home)["worker"]["pid"], signal.SIGKILL)
    os.kill(work["pid"], signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(work["pid"]), what="the end of the run's process", timeout_s=10)


def steps(home: Path) -> list[Path]:
    return sorted(home.glob("checkpoints/*/step-*"))


def newest_step(home: Path) -> str:
    return steps(home)[-1].name


def told_of(api: httpx.Client, run: str) -> dict[str, Any]:
    return api.get(f"/flow_runs/{run}").json()


def ended(api: httpx.Client, run: str) -> dict[str, Any] | None:
    found = told_of(api, run)
    return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def all_up(home: Path, before: dict[str, Any]) -> bool:
    found = look(home)
    killed = ("prefect", "mlflow")
    return all(found[name]["state"] == "up" and found[name]["pid"] != before[name]["pid"] for name in killed)


def test_a_killed_supervisor_leaves_no_process_and_down_stops_everything(standing, home, call, ports) -> None:
    os.kill(json.loads((home / "up" / "status.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: not find_processes(home), what="the end of what it had started", timeout_s=60)
    assert call("status") == {"is_up": False, "servers": []}
    again = servers(call("up", *ports))
    assert {server["state"] for server in again.values()} == {"up"}
    assert again["digits"]["url"] == servers(standing)["digits"]["url"]
    pids = [server["pid"] for server in again.values()]
    assert call("down") == {"was_up": True, "ended": 0}
    assert not find_processes(home)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert call("down") == {"was_up": False, "ended": 0}
    assert call("status") == {"is_up": False, "servers": []}
