"""Approvals and new data, with a real Prefect server and worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from bloomery.flows.recipe.recipe_files import RECIPES
from tests.processes import QUERY_INTERVAL_S, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OTHER_BUDGET = {"accuracy_drop": 0.02, "objective": "latency"}  # selects another candidate than the recipe's budget
Bloomery = Callable[..., subprocess.CompletedProcess[str]]
WATCH = """
import sys
from bloomery.flows.services.prefect_deployments import register_recipes
from bloomery.flows.watch import watch

registrations = [register_recipes([sys.argv[1]]), register_recipes([sys.argv[1]])]
assert registrations[0] == registrations[1], registrations
assert any(name.startswith("watch/") for name in registrations[0]), registrations
for _ in sys.stdin:
    print("WATCH", watch(sys.argv[1], return_state=True).name, flush=True)
"""


class PrefectServer(NamedTuple):
    """A Prefect server, and a state folder for the runs of its deployments."""

    api: str
    home: Path
    environment: dict[str, str]
    client: httpx.Client

    def post(self, path: str, **body: Any) -> Any:
        """Returns the response; retries while the server is busy, as Prefect's own client does."""

        def try_post() -> httpx.Response | None:
            response = self.client.post(f"/{path}", json=body)
            return None if response.status_code == 503 else response

        return wait_for(try_post).json()

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        query = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return [run for run in self.post("flow_runs/filter", **query) if run["auto_scheduled"] is False]

    def start_run(self, recipe: Path) -> str:
        """Registers the recipe and starts a run of its deployment. Returns the flow run's id."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from bloomery.flows.services.prefect_deployments import register_recipes

        with temporary_settings({PREFECT_API_URL: self.api}):
            deployments = register_recipes([str(recipe)])
        deployment = self.client.get(f"/deployments/name/{deployments[0]}").json()
        return str(self.post(f"deployments/{deployment['id']}/create_flow_run")["id"])

    def delete_deployments(self) -> None:
        """Deletes all deployments with their scheduled runs, and all automations."""
        for kind in ("deployments", "automations"):
            for item in self.post(f"{kind}/filter"):
                self.client.delete(f"/{kind}/{item['id']}").raise_for_status()


@pytest.fixture(scope="module")
def prefect_server(
    copy_finished_run: Callable[[Path], Path],
    prefect: str,
    tmp_path_factory: pytest.TempPathFactory,
    clean_environment: Callable[..., dict[str, str]],
) -> Iterator[PrefectServer]:
    home = copy_finished_run(tmp_path_factory.mktemp("standing"))
    environment = clean_environment(
        home,
        PREFECT_API_URL=prefect,
        PREFECT_WORKER_QUERY_SECONDS="1",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    with httpx.Client(base_url=prefect, trust_env=False, timeout=30) as client:
        server = PrefectServer(prefect, home, environment, client)
        yield server
        server.delete_deployments()


@pytest.fixture(scope="module")
def worker(prefect_server: PrefectServer) -> Iterator[None]:
    """A worker, which runs the deployments of the server."""
    log = (prefect_server.home.parent / "worker.log").open("ab")
    command = ("prefect", "worker", "start", "--pool", "bloomery", "--type", "process")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # on SIGINT the worker stops its children
    process = subprocess.Popen(
        command, env=prefect_server.environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )
    signal.signal(signal.SIGINT, handler)
    yield
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


def write_recipe(folder: Path, name: str, **changes: Any) -> Path:
    """Writes the recipe `digits` with replaced sections and no schedule."""
    document = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    del document["schedule"]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**document, **changes}))
    return path


def list_versions(forked_bloomery: Bloomery, home: Path) -> dict[int, tuple[list[str], str]]:
    document = json.loads(forked_bloomery(home, "show", "digits", "--json").stdout)["versions"]
    return {version["version"]: (version["aliases"], version["release"]) for version in document}


def test_new_data_starts_the_pipeline_once_after_it_stops_changing(
    prefect_server: PrefectServer, tmp_path: Path
) -> None:
    """Before a worker starts, so the runs stay scheduled."""
    source = tmp_path / "rows.csv"
    source.write_text("id,x\n1,2\n")
    contract = {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "watched",
        "name": "watched",
        "version": "1.0.0",
        "status": "active",
        "schema": [
            {
                "name": "rows",
                "properties": [
                    {"name": "id", "logicalType": "integer", "primaryKey": True, "required": True},
                    {"name": "x", "logicalType": "number", "required": True},
                    {"name": "target", "logicalType": "number", "required": True},
                ],
            }
        ],
    }
    (tmp_path / "watched.odcs.yaml").write_text(yaml.safe_dump(contract))
    recipe = {
        "name": "watched",
        "data": {"source": "rows.csv"},
        "contract": "watched.odcs.yaml",
        "features": {
            "key": "id",
            "label": "target",
            "task": "regression",
            "inputs": [{"kind": "number", "columns": ["x"]}],
            "split": {"train": 0.6, "val": 0.2, "test": 0.2, "salt": "watched"},
        },
        "model": {"kind": "mlp", "hidden": [4]},
        "training": {"epochs": 1},
        "watch": {"interval": "1h"},
    }
    path = tmp_path / "watched.yaml"
    path.write_text(yaml.safe_dump(recipe))
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(path)],
        env=prefect_server.environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert watcher.stdin is not None
    assert watcher.stdout is not None
    outcomes = (line.removeprefix("WATCH ").strip() for line in watcher.stdout if line.startswith("WATCH "))

    def check_data() -> str:
        watcher.stdin.write("check\n")
        watcher.stdin.flush()
        return next(outcomes)

    def runs() -> int:
        return len(prefect_server.runs_of("watched"))

    assert [check_data(), check_data(), runs()] == ["Changing", "New data", 1]
    assert [check_data(), runs()] == ["Unchanged", 1]
    source.write_text("id,x\n1,2\n2,")  # an incomplete write
    assert check_data() == "Changing"
    source.write_text("id,x\n1,2\n2,3\n")
    assert [check_data(), runs()] == ["Changing", 1]
    assert [check_data(), runs()] == ["New data", 2]
    os.utime(source, (1, 1))
    assert [check_data(), check_data(), runs()] == ["Changing", "Unchanged", 2]
    source.unlink()
    assert [check_data(), runs()] == ["No data", 2]
    watcher.stdin.close()
    assert watcher.wait(timeout=60) == 0
    (deployment,) = prefect_server.post("deployments/filter", flows={"name": {"any_": ["watch"]}})
    assert deployment["name"] == "watched"
    assert [schedule["schedule"]["interval"] for schedule in deployment["schedules"]] == [3600]
    events = wait_for(
        lambda: prefect_server.post("events/filter", filter={"event": {"name": ["bloomery.new-data"]}})["events"]
    )
    assert {event["resource"]["prefect.resource.id"] for event in events} == {"bloomery.recipe.watched"}
    prefect_server.delete_deployments()


@pytest.mark.usefixtures("worker")
def test_a_deployed_run_is_suspended_until_its_approval_is_decided(
    prefect_server: PrefectServer, tmp_path: Path, forked_bloomery: Bloomery
) -> None:
    recipe = write_recipe(tmp_path, "approval", budget=OTHER_BUDGET, approval={"timeout": "1h"})
    run = prefect_server.start_run(recipe)

    def state() -> str:
        return str(prefect_server.client.get(f"/flow_runs/{run}").json()["state"]["name"])

    wait_for(lambda: state() in ("Suspended", "Failed", "Crashed"), step_s=QUERY_INTERVAL_S)
    assert state() == "Suspended"
    shown_versions = list_versions(forked_bloomery, prefect_server.home)
    assert shown_versions[1][0] == ["champion"]
    assert shown_versions[2][0] == []
    assert shown_versions[2][1].startswith("waits for approval until")
    (artifact,) = prefect_server.post("artifacts/latest/filter", artifacts={"key": {"any_": ["approval"]}})
    assert "| | version 2 | champion, version 1 |" in artifact["data"]
    assert "| p50 of one row |" in artifact["data"]
    refused = forked_bloomery(prefect_server.home, "promote", "digits:2", PREFECT_API_URL=prefect_server.api)
    assert refused.returncode == 4
    assert "bloomery approve digits:2" in refused.stderr
    # The form requires name and reason, and the server rejects an answer without them.
    response = prefect_server.post(f"flow_runs/{run}/resume", run_input={"decision": "approve"})
    assert (response["status"], state()) == ("REJECT", "Suspended")
    approved = forked_bloomery(
        prefect_server.home,
        "approve",
        "digits",
        "--reason",
        "it is quicker",
        "--json",
        PREFECT_API_URL=prefect_server.api,
    )
    assert approved.returncode == 0, approved.stdout + approved.stderr
    assert json.loads(approved.stdout)["flow_run"] == run
    wait_for(lambda: state() in ("Completed", "Failed", "Crashed"), step_s=QUERY_INTERVAL_S)
    assert state() == "Completed"
    assert list_versions(forked_bloomery, prefect_server.home)[2] == (["champion"], "promoted")
    changes = json.loads(forked_bloomery(prefect_server.home, "history", "digits", "--json").stdout)
    assert [(change["action"], change["replaced"], change["version"]) for change in changes[1:]] == [("approve", 1, 2)]
    assert changes[-1]["reason"] == "it is quicker"
    assert "@" in changes[-1]["by"]
    second = forked_bloomery(prefect_server.home, "approve", "digits", "--reason", "again")
    assert second.returncode == 2
    assert "no version of digits waits" in second.stderr


@pytest.mark.usefixtures("worker")
def test_a_deployed_run_fails_when_its_approval_expires_and_the_champion_stays(
    prefect_server: PrefectServer, tmp_path: Path, forked_bloomery: Bloomery
) -> None:
    """No process of the run exists when the approval expires, so the server ends the run."""
    (champion,) = (
        number for number, (aliases, _) in list_versions(forked_bloomery, prefect_server.home).items() if aliases
    )
    changes: dict[str, Any] = {} if champion == 2 else {"budget": OTHER_BUDGET}
    recipe = write_recipe(tmp_path, "expiring", approval={"timeout": "3s"}, **changes)
    run = prefect_server.start_run(recipe)

    def state() -> dict[str, Any]:
        run_state: dict[str, Any] = prefect_server.client.get(f"/flow_runs/{run}").json()["state"]
        return run_state

    wait_for(lambda: state()["type"] in ("COMPLETED", "FAILED", "CRASHED"), step_s=QUERY_INTERVAL_S)
    assert (state()["type"], state()["message"]) == ("FAILED", "The flow was paused and never resumed.")
    final_versions = list_versions(forked_bloomery, prefect_server.home)
    assert final_versions[champion] == (["champion"], "promoted")
    assert final_versions[3 - champion][0] == []
    assert final_versions[3 - champion][1].startswith("refused: nobody decided")
    last_change = json.loads(forked_bloomery(prefect_server.home, "history", "digits", "--json").stdout)[-1]
    assert (last_change["action"], last_change["version"], last_change["by"]) == ("refuse", 3 - champion, "nobody")
    late_decision = prefect_server.post(
        f"flow_runs/{run}/resume", run_input={"decision": "approve", "by": "me", "reason": "too late"}
    )
    assert late_decision["status"] == "ABORT", late_decision
    assert list_versions(forked_bloomery, prefect_server.home) == final_versions


def test_a_run_without_server_and_terminal_ends_with_4_and_the_next_run_uses_the_decision(
    copy: Path, tmp_path: Path, bloomery: Bloomery, forked_bloomery: Bloomery
) -> None:
    recipe = str(write_recipe(tmp_path, "approval", budget=OTHER_BUDGET, approval="required"))
    completed = bloomery(copy, "run", recipe)
    assert completed.returncode == 4, completed.stderr
    assert "digits version 2 passed its gates and waits for approval" in completed.stderr
    assert list_versions(forked_bloomery, copy)[1][0] == ["champion"]
    refusal = forked_bloomery(copy, "approve", "digits:2", "--refuse", "--reason", "not before the holidays")
    assert refusal.returncode == 0, refusal.stderr
    second_run = forked_bloomery(copy, "run", recipe)
    assert second_run.returncode == 4
    assert "said no: not before the holidays" in second_run.stderr
    assert list_versions(forked_bloomery, copy)[1][0] == ["champion"]
    changes = json.loads(forked_bloomery(copy, "history", "digits", "--json").stdout)
    assert [(change["action"], change["version"]) for change in changes] == [("run", 1), ("refuse", 2)]
    promotion = forked_bloomery(copy, "promote", "digits:2", "--despite-refusal", "--reason", "after the holidays")
    assert promotion.returncode == 0, promotion.stderr
    rollback = forked_bloomery(copy, "rollback", "digits")
    assert rollback.returncode == 0, rollback.stderr
    assert list_versions(forked_bloomery, copy)[1][0] == ["champion"]


def test_an_expired_approval_refuses_the_version_and_the_champion_stays(
    prefect_server: PrefectServer, copy: Path, tmp_path: Path, forked_bloomery: Bloomery
) -> None:
    recipe = str(write_recipe(tmp_path, "expiring", budget=OTHER_BUDGET, approval={"timeout": "3s"}))
    completed = forked_bloomery(copy, "run", recipe, "--json", PREFECT_API_URL=prefect_server.api)
    document = json.loads(completed.stdout)
    assert (completed.returncode, document["error"]) == (4, "ReleaseRefused"), completed.stderr
    assert document["found"].startswith("digits version 2 was refused: nobody decided")
    assert "--despite-refusal" in document["remedy"]
    without_deployment = {"deployment_id": {"is_null_": True}}
    (run,) = prefect_server.post(
        "flow_runs/filter", flow_runs=without_deployment, sort="EXPECTED_START_TIME_DESC", limit=1
    )
    assert run["state_type"] == "FAILED", run["state"]
    final_versions = list_versions(forked_bloomery, copy)
    assert final_versions[1] == (["champion"], "promoted")
    assert final_versions[2][0] == []
    assert final_versions[2][1].startswith("refused: nobody decided")
    changes = json.loads(forked_bloomery(copy, "history", "digits", "--json").stdout)
    assert [(change["action"], change["version"], change["by"]) for change in changes[1:]] == [("refuse", 2, "nobody")]
    late_approval = forked_bloomery(copy, "approve", "digits:2", "--reason", "too late")
    assert late_approval.returncode == 2
    assert "no version of digits:2 waits" in late_approval.stderr
