"""`bloomery up`: servers, worker and endpoints that stand, are killed, stand again, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.recipe import known_recipes
from tasks.processes import free_port
from tasks.standing import processes_of

pytestmark = pytest.mark.slow

QUICK = {
    "recipe": "digits",
    "training": {"epochs": 40, "checkpoints": {"every_steps": 20}},
    "compression": {"candidates": [{"name": "fp32"}], "latency_rounds": 20},
    "budget": {"size_bytes": 1_000_000},
    "gates": {"min_accuracy": 0.5, "champion_drop": 1.0},
}


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited in vain for {what}")


@pytest.fixture(scope="module")
def home(copied: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("up"))


@pytest.fixture(scope="module")
def ports() -> tuple[str, ...]:
    stated = (("--prefect-port", free_port()), ("--mlflow-port", free_port()), ("--port", free_port()))
    return tuple(str(word) for pair in stated for word in pair)


@pytest.fixture(scope="module")
def call(home: Path, bloomery: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A command's JSON document."""

    def call(*arguments: str) -> dict[str, Any]:
        ended = bloomery(home, *arguments, "--json")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return json.loads(ended.stdout)

    return call


@pytest.fixture(scope="module")
def standing(home: Path, call: Callable[..., Any], ports: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    yield call("up", *ports)
    call("down")
    assert not processes_of(home)


def servers(document: dict[str, Any]) -> dict[str, Any]:
    assert document["is_up"]
    return {server["name"]: server for server in document["servers"]}


def client(document: dict[str, Any]) -> httpx.Client:
    return httpx.Client(base_url=f"{servers(document)['prefect']['url']}/api", trust_env=False, timeout=30)


def test_servers_worker_and_endpoints_stand_and_know_the_recipes(standing, call, bloomery, ports, tmp_path) -> None:
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
    assert set(deployments) == {one["name"] for one in watched} == set(known_recipes())
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


def test_a_run_goes_on_though_its_process_and_the_worker_are_killed(standing, home, call) -> None:
    with client(standing) as api:
        named = api.get("/deployments/name/pipeline/digits").json()
        started = api.post(f"/deployments/{named['id']}/create_flow_run", json={"parameters": QUICK})
        assert started.is_success, started.text
        run = started.json()["id"]
        wait_for(lambda: list(home.glob("checkpoints/*/step-*")), "a checkpoint")
        work = json.loads((home / "runs" / f"{run}.json").read_text())
        worker = servers(call("status"))["worker"]
        os.kill(worker["pid"], signal.SIGKILL)
        os.kill(work["pid"], signal.SIGKILL)

        def ended() -> dict[str, Any] | None:
            found = api.get(f"/flow_runs/{run}").json()
            return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        wait_for(lambda: api.get(f"/flow_runs/{run}").json()["run_count"] == 2, "the second start", 240)
        found = wait_for(ended, "the end of the run", 240)
        states = [one["name"] for one in api.get("/flow_run_states/", params={"flow_run_id": run}).json()]
    assert (found["state_type"], found["run_count"]) == ("COMPLETED", 2), found["state"]["message"]
    assert {"Crashed", "AwaitingRetry"} <= set(states), states
    assert not list((home / "runs").glob("*.json"))
    after = servers(call("status"))
    assert after["worker"]["restarts"] == 1
    # The version of the run became champion, and the endpoint followed it.
    version = call("show", "digits@champion")
    assert version["version"] == 2
    assert f"r{found['name'].rpartition(' r')[2]}" not in ("", "r")
    card = httpx.get(f"{after['digits']['url']}/info", trust_env=False).json()
    assert card["model"] == version["bento"]


def test_servers_that_are_killed_stand_again(standing, call) -> None:
    before = servers(call("status"))
    for name in ("prefect", "mlflow", "digits"):
        os.kill(before[name]["pid"], signal.SIGKILL)

    wait_for(lambda: all_up(call, before), "servers that stand again", 180)


def all_up(call: Callable[..., Any], before: dict[str, Any]) -> bool:
    try:
        found = servers(call("status"))
    except AssertionError:  # one of them is told as failed, until it stands
        return False
    return all(
        found[name]["state"] == "up" and found[name]["pid"] != before[name]["pid"]
        for name in ("prefect", "mlflow", "digits")
    )


def test_a_killed_supervisor_leaves_nothing_and_down_ends_everything(standing, home, call, ports) -> None:
    os.kill(json.loads((home / "up" / "status.json").read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: not processes_of(home), "the end of what it had started", 60)
    assert call("status") == {"is_up": False, "servers": []}
    again = servers(call("up", *ports))
    assert {server["state"] for server in again.values()} == {"up"}
    assert again["digits"]["url"] == servers(standing)["digits"]["url"]
    pids = [server["pid"] for server in again.values()]
    assert call("down") == {"was_up": True, "ended": 0}
    assert not processes_of(home)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert call("down") == {"was_up": False, "ended": 0}
    assert call("status") == {"is_up": False, "servers": []}
