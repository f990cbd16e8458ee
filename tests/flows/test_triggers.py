"""Approvals and new data, with a real Prefect server and worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from bloomery.flows.recipe.recipe import RECIPES
from tests.living import answers, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
QUICKEST = {"accuracy_drop": 0.02, "objective": "latency"}  # chooses another candidate than the recipe's budget
Bloomery = Callable[..., subprocess.CompletedProcess[str]]
DEPLOY = """
import sys
from pathlib import Path
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder

apply_engine_environment()
require_state_folder()
from prefect import flow

source = flow.from_source(source=str(Path.cwd()), entrypoint="flows/pipeline.py:pipeline")
source.deploy(sys.argv[1], work_pool_name="bloomery", parameters={"recipe": sys.argv[2]}, concurrency_limit=1)
"""
WATCH = """
import sys
from bloomery.flows.services.prefect_deployments import register_recipes
from bloomery.flows.watch import watch

told = [register_recipes([sys.argv[1]]), register_recipes([sys.argv[1]])]
assert told[0] == told[1] and any(name.startswith("watch/") for name in told[0]), told
for _ in sys.stdin:
    print("WATCH", watch(sys.argv[1], return_state=True).name, flush=True)
"""


class Standing(NamedTuple):
    """A Prefect server with a worker, and their state folder."""

    api: str
    home: Path
    environment: dict[str, str]
    client: httpx.Client

    def post(self, path: str, **body: Any) -> Any:
        """Returns the response; retries while the server is busy, as Prefect's own client does."""

        def answered() -> httpx.Response | None:
            response = self.client.post(f"/{path}", json=body)
            return None if response.status_code == 503 else response

        return wait_for(answered).json()

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        wanted = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return [run for run in self.post("flow_runs/filter", **wanted) if run["auto_scheduled"] is False]

    def python(self, code: str, *arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def standing(
    copied: Callable[[Path], Path],
    databases: Path,
    tmp_path_factory: pytest.TempPathFactory,
    clean_environment: Callable[..., dict[str, str]],
) -> Iterator[Standing]:
    folder = tmp_path_factory.mktemp("standing")
    (folder / "prefect").mkdir()
    shutil.copyfile(databases / "prefect.db", folder / "prefect" / "prefect.db")
    home = copied(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    environment = clean_environment(
        home,
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_API_URL=api,
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_WORKER_QUERY_SECONDS="1",
        DO_NOT_TRACK="1",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        log = (folder / "log").open("ab")
        ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # the worker stops its children on it
        started.append(
            subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        )
        signal.signal(signal.SIGINT, ours)

    try:
        start("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        wait_for(lambda: answers(f"{api}/health"))
        subprocess.run(
            ["prefect", "work-pool", "create", "bloomery", "--type", "process"], env=environment, check=True, cwd=ROOT
        )
        start("prefect", "worker", "start", "--pool", "bloomery")
        with httpx.Client(base_url=api, trust_env=False, timeout=30) as client:
            yield Standing(api, home, environment, client)
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


def recipe_in(folder: Path, name: str, **changes: Any) -> Path:
    """Writes the recipe `digits` with replaced sections."""
    document = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**document, **changes}))
    return path


def versions(sharing: Bloomery, home: Path) -> dict[int, tuple[list[str], str]]:
    told = json.loads(sharing(home, "show", "digits", "--json").stdout)["versions"]
    return {one["version"]: (one["aliases"], one["release"]) for one in told}


def test_a_deployed_run_is_suspended_until_a_person_decides(
    standing: Standing, tmp_path: Path, sharing: Bloomery
) -> None:
    recipe = recipe_in(tmp_path, "asks", budget=QUICKEST, approval={"timeout": "1h"})
    standing.python(DEPLOY, "digits", str(recipe))
    deployment = standing.client.get("/deployments/name/pipeline/digits").json()
    run = standing.post(f"deployments/{deployment['id']}/create_flow_run")["id"]

    def state() -> str:
        return str(standing.client.get(f"/flow_runs/{run}").json()["state"]["name"])

    wait_for(lambda: state() in ("Suspended", "Failed", "Crashed"))
    assert state() == "Suspended"
    before = versions(sharing, standing.home)
    assert before[1][0] == ["champion"]
    assert before[2][0] == []
    assert before[2][1].startswith("waits for approval until")
    (shown,) = standing.post("artifacts/latest/filter", artifacts={"key": {"any_": ["approval"]}})
    assert "| | version 2 | champion, version 1 |" in shown["data"]
    assert "| p50 of one row |" in shown["data"]
    refused = sharing(standing.home, "promote", "digits:2", PREFECT_API_URL=standing.api)
    assert refused.returncode == 4
    assert "bloomery approve digits:2" in refused.stderr
    # The form requires name and reason, and the server rejects an answer without them.
    answered = standing.post(f"flow_runs/{run}/resume", run_input={"decision": "approve"})
    assert (answered["status"], state()) == ("REJECT", "Suspended")
    approved = sharing(
        standing.home, "approve", "digits", "--reason", "it is quicker", "--json", PREFECT_API_URL=standing.api
    )
    assert approved.returncode == 0, approved.stdout + approved.stderr
    assert json.loads(approved.stdout)["flow_run"] == run
    wait_for(lambda: state() in ("Completed", "Failed", "Crashed"))
    assert state() == "Completed"
    assert versions(sharing, standing.home)[2] == (["champion"], "promoted")
    changes = json.loads(sharing(standing.home, "history", "digits", "--json").stdout)
    assert [(one["action"], one["replaced"], one["version"]) for one in changes[1:]] == [("approve", 1, 2)]
    assert changes[-1]["why"] == "it is quicker"
    assert "@" in changes[-1]["by"]
    again = sharing(standing.home, "approve", "digits", "--reason", "again")
    assert again.returncode == 2
    assert "no version of digits waits" in again.stderr


def test_a_deployed_run_fails_when_its_approval_expires_and_the_champion_stays(
    standing: Standing, tmp_path: Path, sharing: Bloomery
) -> None:
    """No process of ours runs when the approval expires, so the server ends the run."""
    (champion,) = (number for number, (aliases, _) in versions(sharing, standing.home).items() if aliases)
    changes: dict[str, Any] = {} if champion == 2 else {"budget": QUICKEST}
    recipe = recipe_in(tmp_path, "lapses", approval={"timeout": "3s"}, **changes)
    standing.python(DEPLOY, "digits", str(recipe))
    deployment = standing.client.get("/deployments/name/pipeline/digits").json()
    run = standing.post(f"deployments/{deployment['id']}/create_flow_run")["id"]

    def state() -> dict[str, Any]:
        found: dict[str, Any] = standing.client.get(f"/flow_runs/{run}").json()["state"]
        return found

    wait_for(lambda: state()["type"] in ("COMPLETED", "FAILED", "CRASHED"))
    assert (state()["type"], state()["message"]) == ("FAILED", "The flow was paused and never resumed.")
    found = versions(sharing, standing.home)
    assert found[champion] == (["champion"], "promoted")
    assert found[3 - champion][0] == []
    assert found[3 - champion][1].startswith("refused: nobody decided")
    last = json.loads(sharing(standing.home, "history", "digits", "--json").stdout)[-1]
    assert (last["action"], last["version"], last["by"]) == ("refuse", 3 - champion, "nobody")
    late = standing.post(f"flow_runs/{run}/resume", run_input={"decision": "approve", "by": "me", "why": "too late"})
    assert late["status"] == "ABORT", late
    assert versions(sharing, standing.home) == found


def test_a_run_that_can_ask_nobody_ends_with_4_and_the_decision_counts_for_the_next(
    copy: Path, tmp_path: Path, bloomery: Bloomery, sharing: Bloomery
) -> None:
    recipe = str(recipe_in(tmp_path, "asks", budget=QUICKEST, approval="required"))
    ended = bloomery(copy, "run", recipe)
    assert ended.returncode == 4, ended.stderr
    assert "digits version 2 passed its gates and waits for approval" in ended.stderr
    assert versions(sharing, copy)[1][0] == ["champion"]
    said = sharing(copy, "approve", "digits:2", "--refuse", "--reason", "not before the holidays")
    assert said.returncode == 0, said.stderr
    again = sharing(copy, "run", recipe)
    assert again.returncode == 4
    assert "said no: not before the holidays" in again.stderr
    assert versions(sharing, copy)[1][0] == ["champion"]
    changes = json.loads(sharing(copy, "history", "digits", "--json").stdout)
    assert [(one["action"], one["version"]) for one in changes] == [("run", 1), ("refuse", 2)]
    promoted = sharing(copy, "promote", "digits:2", "--despite-refusal", "--reason", "after the holidays")
    assert promoted.returncode == 0, promoted.stderr
    rolled = sharing(copy, "rollback", "digits")
    assert rolled.returncode == 0, rolled.stderr
    assert versions(sharing, copy)[1][0] == ["champion"]


def test_an_expired_approval_refuses_the_version_and_the_champion_stays(
    standing: Standing, copy: Path, tmp_path: Path, sharing: Bloomery
) -> None:
    recipe = str(recipe_in(tmp_path, "lapses", budget=QUICKEST, approval={"timeout": "3s"}))
    ended = sharing(copy, "run", recipe, "--json", PREFECT_API_URL=standing.api)
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["error"]) == (4, "ReleaseRefused"), ended.stderr
    assert told["found"].startswith("digits version 2 was refused: nobody decided")
    assert "--despite-refusal" in told["remedy"]
    (run, *_) = standing.post("flow_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=1)
    assert run["state_type"] == "FAILED", run["state"]
    found = versions(sharing, copy)
    assert found[1] == (["champion"], "promoted")
    assert found[2][0] == []
    assert found[2][1].startswith("refused: nobody decided")
    changes = json.loads(sharing(copy, "history", "digits", "--json").stdout)
    assert [(one["action"], one["version"], one["by"]) for one in changes[1:]] == [("refuse", 2, "nobody")]
    late = sharing(copy, "approve", "digits:2", "--reason", "too late")
    assert late.returncode == 2
    assert "no version of digits:2 waits" in late.stderr


def test_new_data_starts_the_pipeline_once_after_it_stops_changing(standing: Standing, tmp_path: Path) -> None:
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
    standing.python(DEPLOY, "watched", str(path))

    looking = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(path)],
        env=standing.environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert looking.stdin is not None
    assert looking.stdout is not None
    answers = (line.removeprefix("WATCH ").strip() for line in looking.stdout if line.startswith("WATCH "))

    def look() -> str:
        looking.stdin.write("look\n")
        looking.stdin.flush()
        return next(answers)

    def runs() -> int:
        return len(standing.runs_of("watched"))

    assert [look(), look(), runs()] == ["Changing", "New data", 1]
    assert [look(), runs()] == ["Unchanged", 1]
    source.write_text("id,x\n1,2\n2,")  # an incomplete write
    assert look() == "Changing"
    source.write_text("id,x\n1,2\n2,3\n")
    assert [look(), runs()] == ["Changing", 1]
    assert [look(), runs()] == ["New data", 2]
    os.utime(source, (1, 1))
    assert [look(), look(), runs()] == ["Changing", "Unchanged", 2]
    source.unlink()
    assert [look(), runs()] == ["No data", 2]
    looking.stdin.close()
    assert looking.wait(timeout=60) == 0
    (deployed,) = standing.post("deployments/filter", flows={"name": {"any_": ["watch"]}})
    assert deployed["name"] == "watched"
    assert [one["schedule"]["interval"] for one in deployed["schedules"]] == [3600]
    told = wait_for(lambda: standing.post("events/filter", filter={"event": {"name": ["bloomery.new-data"]}})["events"])
    assert {event["resource"]["prefect.resource.id"] for event in told} == {"bloomery.recipe.watched"}
