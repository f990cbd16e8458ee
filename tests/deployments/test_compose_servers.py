"""The commands of compose.yaml, with their own environments, run a recipe on a real PostgreSQL."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server
from tests.conftest import QUICK
from tests.processes import responds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())["services"]
DATABASES = ROOT / "deployments" / "kubernetes" / "databases.sql"
PASSWORD = "as in the secret's file"


def program(name: str) -> str:
    """A program of PostgreSQL, which Debian does not put on the path."""
    programs = [*Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), *filter(None, [shutil.which(name)])]
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    return str(programs[0])


@pytest.fixture(scope="module")
def postgres() -> Iterator[int]:
    """The port of a PostgreSQL server set up as its image does: one user, a password, our databases."""
    initdb, server, psql = program("initdb"), program("postgres"), program("psql")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        # PostgreSQL does not run as root.
        user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}
        if user:
            shutil.chown(folder, "postgres")
        (Path(folder) / "password").write_text(PASSWORD)
        os.chmod(Path(folder) / "password", 0o644)
        initdb_command = [
            initdb,
            "-D",
            f"{folder}/data",
            "--username=bloomery",
            f"--pwfile={folder}/password",
            "--auth=scram-sha-256",
        ]
        subprocess.run(initdb_command, check=True, capture_output=True, cwd=folder, **user)
        port = find_free_port()
        command = [server, "-D", f"{folder}/data", "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", folder]
        log = stack.enter_context(open(f"{folder}/log", "wb"))
        running = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **user)
        try:
            psql_command = [psql, "-h", "127.0.0.1", "-p", str(port), "-U", "bloomery", "-d", "postgres"]
            environment = {**os.environ, "PGPASSWORD": PASSWORD}
            for _ in range(100):
                probe = subprocess.run([*psql_command, "-c", "select 1"], env=environment, capture_output=True)
                if probe.returncode == 0:
                    break
                time.sleep(0.2)
            subprocess.run([*psql_command, "-f", str(DATABASES)], env=environment, check=True, capture_output=True)
            yield port
        finally:
            running.terminate()
            running.wait(timeout=30)


Localize = Callable[[str], tuple[list[str], dict[str, str]]]


@pytest.fixture
def localize(postgres: int, tmp_path: Path, clean_environment: Callable[..., dict[str, str]]) -> Localize:
    """A service's command and environment, with hosts, ports and folders of this machine instead of a container's."""
    ports = {"mlflow:5000": find_free_port(), "prefect:4200": find_free_port(), "postgres:5432": postgres}
    paths = {"/var/lib/mlflow": tmp_path / "artifacts", "/var/lib/bloomery": tmp_path / ".bloomery", "/tmp": tmp_path}

    def localize_text(text: str) -> str:
        for name, port in ports.items():
            text = text.replace(name, f"127.0.0.1:{port}").replace(f"--port={name.split(':')[1]}", f"--port={port}")
        text = re.sub("|".join(paths), lambda match: str(paths[match.group()]), text)
        return text.replace("0.0.0.0", "127.0.0.1")

    def make(name: str) -> tuple[list[str], dict[str, str]]:
        variables = {
            key: localize_text(str(value))
            for key, value in SERVICES[name]["environment"].items()
            if "${" not in str(value)
        }
        variables |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PREFECT_HOME": str(tmp_path / name),
            "PREFECT_WORKER_QUERY_SECONDS": "1",  # by default a worker looks for runs every ten seconds
        }
        if "postgres_password" in SERVICES[name].get("secrets", ()):
            variables["PGPASSWORD"] = PASSWORD
        return [localize_text(word) for word in SERVICES[name]["command"]], clean_environment(
            tmp_path / ".bloomery", **variables
        )

    return make


def address(command: list[str], path: str) -> str:
    (port,) = [word.removeprefix("--port=") for word in command if word.startswith("--port=")]
    return f"http://127.0.0.1:{port}{path}"


def test_a_worker_runs_a_recipe_on_servers_with_postgresql(localize: Localize, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:

        def start(name: str, *more: str, is_ready: Callable[[], bool]) -> Callable[[], None]:
            command, environment = localize(name)
            log = tmp_path / f"{name}.log"
            # `tethered_server` adds to this process's environment, which a container does not have.
            cleared = ["env", "-i", *(f"{key}={value}" for key, value in environment.items()), *command, *more]
            return stack.enter_context(tethered_server(cleared, is_ready=is_ready, log=log, timeout_s=180))

        mlflow, api = localize("mlflow")[0], localize("prefect")[0]
        waits = [
            start("mlflow", is_ready=partial(responds, address(mlflow, "/health"))),
            start("prefect", is_ready=partial(responds, address(api, "/api/ready"))),
        ]
        for wait in waits:
            wait()
        start("worker", is_ready=partial(responds, address(api, "/api/work_pools/bloomery")))()

        def call(*command: str) -> str:
            _, environment = localize("deployments")
            completed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
            assert completed.returncode == 0, (
                completed.stdout + completed.stderr + (tmp_path / "worker.log").read_text()[-2000:]
            )
            return completed.stdout

        call(*localize("deployments")[0])
        sections = yaml.safe_load(QUICK.read_text())
        sections["training"] |= {"epochs": 1, "explain": None}
        sections["gates"]["min_accuracy"] = 0
        sections["compression"]["candidates"] = [{"name": "fp32"}]
        parameters = [
            f"{name}={json.dumps(sections[name])}" for name in ("model", "training", "compression", "budget", "gates")
        ]
        words = [word for parameter in parameters for word in ("--param", parameter)]
        call(
            "prefect",
            "--no-prompt",
            "deployment",
            "run",
            "pipeline/digits",
            *words,
            "--watch",
            "--watch-timeout",
            "300",
        )
        with httpx.Client(trust_env=False) as client:
            runs = client.post(address(api, "/api/flow_runs/filter"), json={}).json()
            assert [run["state_type"] for run in runs if run["state_type"] != "SCHEDULED"] == ["COMPLETED"]
            versions = client.get(
                address(mlflow, "/api/2.0/mlflow/registered-models/alias"),
                params={"name": "digits", "alias": "champion"},
            ).json()
            assert versions["model_version"]["version"] == "1"
        # No database file lies beside the worker.
        assert not [path for name in ("mlflow.db", "prefect.db") for path in tmp_path.rglob(name)]
        assert list((tmp_path / "artifacts").rglob("*"))
