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

from bloomery.data_contracts.errors import RecipeInvalid, SettingInvalid
from bloomery.flows.cli.commands.up import select_recipes
from bloomery.flows.recipe.recipe_files import RECIPES
from bloomery.tasks.infrastructure.service_status import find_processes, read_service_status
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.tethered_process import find_free_port
from tests.flows.bundled import installed_recipes
from tests.processes import QUERY_INTERVAL_S, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[4]
STAGES = ("ingest", "validate", "prepare", "train", "compress", "choose", "package", "promote")
DIGESTS = ("data.digest", "weights.sha256", "bento")
QUICK: dict[str, Any] = {
    "training": {"epochs": 40, "checkpoints": {"every_steps": 20}, "explain": None},
    "compression": {
        "candidates": [{"name": "fp32"}, {"name": "pruned", "prune": {"ratio": 0.5}}],
        "fine_tune": {"epochs": 10, "learning_rate": 0.002},
        "latency_rounds": 20,
    },
    "budget": {
        "accuracy_drop": 1.0,
        "class_drop": 1.0,
        "size_bytes": 1_000_000,
        "latency_ms": 1000,
        "objective": "size",
    },
    "gates": {"min_accuracy": 0.5, "champion_drop": 1.0},
}


@pytest.fixture(scope="module")
def home(copy_finished_run: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_finished_run(tmp_path_factory.mktemp("up"))


@pytest.fixture(scope="module")
def ports() -> tuple[str, ...]:
    options = (("--prefect-port", find_free_port()), ("--mlflow-port", find_free_port()), ("--port", find_free_port()))
    return tuple(str(word) for pair in options for word in pair)


@pytest.fixture(scope="module")
def call(home: Path, bloomery: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Returns a command's JSON document."""

    def call(*arguments: str) -> dict[str, Any]:
        completed = bloomery(home, *arguments, "--json")
        assert completed.returncode == 0, completed.stdout + completed.stderr
        return json.loads(completed.stdout)

    return call


@pytest.fixture(scope="module")
def services(home: Path, call: Callable[..., Any], ports: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    yield call("up", "--bundled", *ports)
    call("down")
    assert not find_processes(home)


@pytest.fixture(scope="module")
def undisturbed(
    copy_finished_run: Callable[[Path], Path],
    forked_bloomery: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Runs the recipe `digits` with these parameters in a state folder where nothing is killed."""
    home = copy_finished_run(tmp_path_factory.mktemp("undisturbed"))

    def run(parameters: dict[str, Any]) -> dict[str, Any]:
        recipe = yaml.safe_load((RECIPES / "digits.yaml").read_text())
        for section, values in parameters.items():
            recipe[section] = {**recipe.get(section, {}), **values}
        (home.parent / "quick.yaml").write_text(yaml.safe_dump(recipe))
        completed = forked_bloomery(home, "run", str(home.parent / "quick.yaml"))
        assert completed.returncode == 0, completed.stdout + completed.stderr
        version: dict[str, Any] = json.loads(forked_bloomery(home, "show", "digits@champion", "--json").stdout)
        return version

    return run


class PredictionClient:
    """Sends requests repeatedly; records which models responded, and failures."""

    def __init__(self, url: str) -> None:
        self.models: list[str] = []
        self.failures: list[str] = []
        self._ended = threading.Event()
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30)
        document = self._client.get("/openapi.json").json()
        self._body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
        self._thread = threading.Thread(target=self._send_requests)

    def __enter__(self) -> PredictionClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def _send_requests(self) -> None:
        while not self._ended.wait(0.2):
            try:
                response = self._client.post("/predict", json=self._body)
                response.raise_for_status()
                self.models.append(response.json()["model"])
            except httpx.HTTPError as failure:
                self.failures.append(repr(failure))


@pytest.fixture
def prediction_client(services: dict[str, Any]) -> Iterator[PredictionClient]:
    with PredictionClient(servers(services)["digits"]["url"]) as running_client:
        yield running_client


def read_services(home: Path) -> dict[str, Any]:
    """Returns the status of all services, without starting a process."""
    status = read_service_status(home)
    assert status is not None
    return servers({"is_up": True, **status.model_dump()})


def servers(document: dict[str, Any]) -> dict[str, Any]:
    assert document["is_up"]
    return {server["name"]: server for server in document["services"]}


def client(document: dict[str, Any]) -> httpx.Client:
    return httpx.Client(base_url=f"{servers(document)['prefect']['url']}/api", trust_env=False, timeout=30)


def test_the_users_recipes_are_registered_and_bundled_ones_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOOMERY_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    monkeypatch.chdir(tmp_path)
    assert select_recipes((), with_bundled=False) == ({}, {})
    digits = (RECIPES / "digits.yaml").read_text()
    wine, other = tmp_path / "wine.yaml", tmp_path / "digits.yaml"
    wine.write_text(digits.replace("name: digits", "name: wine", 1))
    other.write_text(digits.replace("epochs", "epocs"))
    selection = select_recipes((), with_bundled=False)
    assert selection.references == {"wine": str(wine)}
    assert list(selection.problems) == [str(other)]
    assert "did you mean 'epochs'?" in selection.problems[str(other)]
    with pytest.raises(RecipeInvalid):  # a requested one must be valid
        select_recipes(["digits"], with_bundled=False)
    other.unlink()
    assert select_recipes(["digits", "./wine.yaml"], with_bundled=False).references == {
        "digits": "digits",
        "wine": str(wine),
    }
    selection = select_recipes((), with_bundled=True)
    assert set(selection.references) == {*installed_recipes(), "wine"}
    other.write_text(digits)
    assert select_recipes((), with_bundled=True).references["digits"] == "digits"  # it was requested
    (tmp_path / "folder").mkdir()
    second = tmp_path / "folder" / "wine.yaml"
    second.write_text(wine.read_text())
    with pytest.raises(SettingInvalid, match="two recipes are named 'wine'"):
        select_recipes(["wine", str(second)], with_bundled=False)
    settings.cache_clear()


def test_servers_worker_and_endpoints_are_up_and_recipes_are_registered(
    services, call, bloomery, ports, tmp_path
) -> None:
    started = servers(services)
    assert {name: server["state"] for name, server in started.items()} == dict.fromkeys(started, "up")
    assert set(started) == {"prefect", "mlflow", "worker", "digits"}
    for page in (started["prefect"]["url"], started["mlflow"]["url"], f"{started['digits']['url']}/readyz"):
        assert httpx.get(page, trust_env=False, follow_redirects=True).is_success, page
    with client(services) as api:
        deployments = {
            item["name"]: item
            for item in api.post("/deployments/filter", json={"flows": {"name": {"any_": ["pipeline"]}}}).json()
        }
        monitors = api.post("/deployments/filter", json={"flows": {"name": {"any_": ["monitor"]}}}).json()
        automations = [item["name"] for item in api.post("/automations/filter", json={}).json()]
    assert set(deployments) == {item["name"] for item in monitors} == set(installed_recipes())
    digits = deployments["digits"]
    assert [(item["schedule"]["cron"], item["active"]) for item in digits["schedules"]] == [("0 3 * * *", True)]
    assert digits["global_concurrency_limit"]["limit"] == 1
    assert "epochs" in json.dumps(digits["parameter_openapi_schema"])
    assert automations.count("mark dead runs as crashed") == 1

    second = servers(call("up", *ports))
    assert {name: server["pid"] for name, server in second.items()} == {n: s["pid"] for n, s in started.items()}
    assert servers(call("status")) == second
    completed = bloomery(tmp_path / "other", "up", *ports, "--json")
    error = json.loads(completed.stdout)
    assert (completed.returncode, error["error"]) == (1, "PortInUse")
    assert f"pid {started['prefect']['pid']}" in error["where"] or "python" in error["where"]


def test_prefect_commands_deploy_the_recipes_and_run_one(services, home, call, clean_environment) -> None:
    """Uses the running server and worker. Meanwhile the endpoint is killed."""
    endpoint = servers(services)["digits"]
    os.kill(endpoint["pid"], signal.SIGKILL)
    environment = clean_environment(
        home, PREFECT_API_URL=f"{servers(services)['prefect']['url']}/api", PREFECT_HOME=str(home / "prefect")
    )
    program = str(Path(sys.executable).with_name("prefect"))
    for words in (
        ("deploy", "--prefect-file", "deployments/prefect.yaml", "--all"),
        ("deployment", "run", "pipeline/digits", "--watch", "--watch-timeout", "300"),
    ):
        completed = subprocess.run(
            [program, "--no-prompt", *words], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
    with client(services) as api:
        runs = api.post("/flow_runs/filter", json={}).json()
        tasks = api.post("/task_runs/filter", json={}).json()
        artifacts = api.post("/artifacts/latest/filter", json={}).json()
    deployed_runs = [run for run in runs if run["deployment_id"] is not None]
    assert [run["name"].rpartition(" ")[0] for run in deployed_runs if run["state_type"] == "COMPLETED"] == [
        "digits v1"
    ]
    assert [run for run in deployed_runs if run["state_type"] == "SCHEDULED"], "the schedule made no runs"
    assert {run["name"] for run in tasks if run["state_type"] == "COMPLETED"} == set(STAGES)
    assert {artifact["key"] for artifact in artifacts} >= {
        "contract-report",
        "mlflow-run",
        "candidates",
        "bento",
        "release",
    }
    restarted = servers(call("status"))["digits"]
    assert (restarted["state"], restarted["restarts"]) == ("up", 1)
    assert restarted["pid"] != endpoint["pid"]


@pytest.mark.parametrize(
    ("epochs", "outages"),
    [(40, ("train",)), pytest.param(44, ("train", "compress"), marks=pytest.mark.nightly)],
    ids=["one outage", "two outages"],
)
def test_a_run_survives_kills_and_produces_the_same_digests(
    services, home, call, undisturbed, prediction_client, epochs, outages
) -> None:
    """The run and its worker are killed once, and both servers in each of the stages `outages`."""
    parameters = {**QUICK, "training": {**QUICK["training"], "epochs": epochs}}
    worker_restarts = read_services(home)["worker"]["restarts"]
    with client(services) as api:
        deployment = api.get("/deployments/name/pipeline/digits").json()
        response = api.post(f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters})
        assert response.is_success, response.text
        run = response.json()["id"]
        kill_the_run_and_its_worker(home, run)
        newest = newest_step(home)
        wait_for(lambda: steps(home) and newest_step(home) > newest, what="training that continues", timeout_s=240)
        assert read_flow_run(api, run)["run_count"] == 2
    for stage in outages:
        wait_for(
            lambda stage=stage: list((home / "stages" / ".tmp").glob(f"{stage}-*")),
            what=f"the stage {stage}",
            timeout_s=240,
        )
        services_before = read_services(home)
        for name in ("prefect", "mlflow"):
            os.kill(services_before[name]["pid"], signal.SIGKILL)
        assert list((home / "stages" / ".tmp").glob(f"{stage}-*")), "the stage had ended before the kill"
        wait_for(
            lambda before=services_before: all_up(home, before),
            what="restarted servers",
            timeout_s=180,
        )
    with client(services) as api:
        flow_run = wait_for(
            lambda: read_ended_run(api, run), what="the end of the run", timeout_s=240, step_s=QUERY_INTERVAL_S
        )
        states = [state["name"] for state in api.get("/flow_run_states/", params={"flow_run_id": run}).json()]
        running = api.post("/flow_runs/filter", json={"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}).json()
    assert (flow_run["state_type"], flow_run["run_count"], running) == ("COMPLETED", 2, []), flow_run["state"][
        "message"
    ]
    assert {"Crashed", "AwaitingRetry"} <= set(states), states
    assert not list((home / "runs").glob("*.json"))
    assert not list((home / "stages" / ".tmp").iterdir())
    after = servers(call("status"))
    assert after["worker"]["restarts"] == worker_restarts + 1
    version = call("show", "digits@champion")
    assert flow_run["name"].startswith(f"digits v{version['version']} r"), flow_run["name"]
    # The kills leave no trace in the result.
    expected = undisturbed(parameters)
    assert version["version"] == expected["version"] > 1
    assert version["bento"] == expected["bento"]
    assert {name: version["tags"][name] for name in DIGESTS} == {name: expected["tags"][name] for name in DIGESTS}
    # The endpoint switched to the new champion, and the previous one served until then.
    wait_for(
        lambda: prediction_client.models[-1] == version["bento"],
        what="an endpoint that serves the new champion",
        timeout_s=30,
    )
    assert prediction_client.failures == []
    assert len(set(prediction_client.models)) == 2


def kill_the_run_and_its_worker(home: Path, run: str) -> None:
    wait_for(lambda: steps(home), what="a checkpoint")
    run_process = json.loads((home / "runs" / f"{run}.json").read_text())
    os.kill(read_services(home)["worker"]["pid"], signal.SIGKILL)
    os.kill(run_process["pid"], signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(run_process["pid"]), what="the end of the run's process", timeout_s=10)


def steps(home: Path) -> list[Path]:
    return sorted(home.glob("checkpoints/*/step-*"))


def newest_step(home: Path) -> str:
    return steps(home)[-1].name


def read_flow_run(api: httpx.Client, run: str) -> dict[str, Any]:
    return api.get(f"/flow_runs/{run}").json()


def read_ended_run(api: httpx.Client, run: str) -> dict[str, Any] | None:
    flow_run = read_flow_run(api, run)
    return flow_run if flow_run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def all_up(home: Path, before: dict[str, Any]) -> bool:
    services = read_services(home)
    killed = ("prefect", "mlflow")
    return all(services[name]["state"] == "up" and services[name]["pid"] != before[name]["pid"] for name in killed)


def test_a_killed_supervisor_leaves_no_process_and_down_stops_everything(services, home, call, ports) -> None:
    os.kill(json.loads((home / "up" / "status.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: not find_processes(home), what="the end of all its processes", timeout_s=60)
    assert call("status") == {"is_up": False, "services": []}
    again = servers(call("up", *ports))
    assert {server["state"] for server in again.values()} == {"up"}
    assert again["digits"]["url"] == servers(services)["digits"]["url"]
    pids = [server["pid"] for server in again.values()]
    assert call("down") == {"was_up": True, "num_terminated": 0}
    assert not find_processes(home)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert call("down") == {"was_up": False, "num_terminated": 0}
    assert call("status") == {"is_up": False, "services": []}
