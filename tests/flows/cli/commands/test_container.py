"""A packaged champion in BentoML's commands, in another store, and as a container build context."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement

from bloomery.data_contracts.serving.signatures import OWN_KEYS_FILE, TRUSTED_KEY_VARIABLE
from bloomery.tasks.bentos.bento_server import post_rows, serve_bento
from bloomery.tasks.bentos.bento_store import bento_folder

pytestmark = pytest.mark.slow

Bloomery = Callable[..., subprocess.CompletedProcess[str]]
Environment = Callable[..., dict[str, str]]
FinishedRun = tuple[Path, dict[str, Any]]
TEST_DOCKER = """\
#!/bin/sh
case "$1" in
  version) echo '"28.2.2"' ;;
  build) echo "$@" > "$COPY_FOLDER/arguments"; cp -r . "$COPY_FOLDER/context" ;;
esac
"""


@pytest.fixture
def bentoml(finished_run: FinishedRun, clean_environment: Environment) -> Bloomery:
    """Calls BentoML's command line on a store, by default that of `finished_run`."""

    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        variables = {"BENTOML_HOME": str(finished_run[0] / "bentoml"), "BENTOML_DO_NOT_TRACK": "True", **more}
        command = [sys.executable, "-m", "bentoml", *arguments]
        return subprocess.run(
            command, env=clean_environment(finished_run[0], **variables), capture_output=True, text=True, timeout=120
        )

    return call


@pytest.fixture
def context(finished_run: FinishedRun, forked_bloomery: Bloomery, tmp_path: Path) -> Path:
    completed = forked_bloomery(finished_run[0], "container", "digits", "--output", str(tmp_path / "image"), "--json")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    document = json.loads(completed.stdout)
    assert document["tag"] == finished_run[1]["bento"]["tag"]
    assert document["folder"] == str(tmp_path / "image")
    return tmp_path / "image"


def test_the_build_context_of_the_champion_has_pinned_packages(context: Path) -> None:
    lines = (context / "env" / "python" / "requirements.txt").read_text().splitlines()
    versions = {Requirement(line).name: str(Requirement(line).specifier) for line in lines}
    assert all(version.startswith("==") for version in versions.values())
    assert {"onnxruntime", "pyarrow", "bentoml", "starlette", "uvicorn"} <= set(versions)
    assert not {"torch", "pyspark", "prefect", "mlflow"} & set(versions)
    dockerfile = (context / "Dockerfile").read_text()
    for heavy in ("build-essential", "apt-get"):
        assert heavy not in dockerfile


def test_bentoml_containerize_builds_from_the_same_context(
    finished_run: FinishedRun, bentoml: Bloomery, context: Path, tmp_path: Path
) -> None:
    """A script replaces Docker and keeps its build context."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(TEST_DOCKER)
    docker.chmod(0o755)
    tag = finished_run[1]["bento"]["tag"]
    path = f"{docker.parent}:{os.environ['PATH']}"
    completed = bentoml("containerize", tag, PATH=path, COPY_FOLDER=str(tmp_path), DOCKER_BUILDKIT="0")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert f"--tag {tag} " in (tmp_path / "arguments").read_text()
    bentoml_context = tmp_path / "context"
    # Python's compiled files in BentoML's store become part of its build context.
    paths = [path for path in bentoml_context.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    files = [path.relative_to(bentoml_context) for path in paths]
    contents = {path: (context / path).read_bytes() for path in files if path.name != "Dockerfile"}
    assert len(contents) > 50
    assert contents == {path: (bentoml_context / path).read_bytes() for path in contents}

    def instructions(dockerfile: Path) -> list[str]:
        return [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.startswith("#")]

    assert instructions(context / "Dockerfile")[:-1] == instructions(bentoml_context / "env" / "docker" / "Dockerfile")
    assert instructions(context / "Dockerfile")[-1].startswith("HEALTHCHECK ")


def test_a_bento_is_listed_exported_and_served_from_another_store(
    finished_run: FinishedRun, bentoml: Bloomery, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signing_home, release = finished_run
    tag = release["bento"]["tag"]
    bentos = json.loads(bentoml("list", "--output", "json").stdout)
    assert tag in [item["tag"] for item in bentos]
    export = bentoml("export", tag, str(tmp_path / "digits.bento"))
    assert export.returncode == 0, export.stdout + export.stderr
    store = str(home / "bentoml")
    import_ = bentoml("import", str(tmp_path / "digits.bento"), BENTOML_HOME=store)
    assert import_.returncode == 0, import_.stdout + import_.stderr
    assert [item["tag"] for item in json.loads(bentoml("list", "--output", "json", BENTOML_HOME=store).stdout)] == [tag]
    assert bento_folder(tag).is_relative_to(home)
    # Another state folder does not trust the key that signed the bento.
    monkeypatch.setenv(TRUSTED_KEY_VARIABLE, str(signing_home / OWN_KEYS_FILE))
    choice = release["bento"]["choice"]
    predictions = pq.read_table(signing_home / choice["candidate"]["predictions_uri"]).slice(0, 20).to_pylist()
    valid_rows = pq.read_table(signing_home / choice["candidates"]["trained"]["dataset"]["valid_rows"]["uri"])
    images = dict(zip(valid_rows["id"].to_pylist(), valid_rows["image"].to_pylist(), strict=True))
    with serve_bento(tag) as client:
        response = post_rows(client, [{"image": images[row["id"]]} for row in predictions])
    assert response.headers["x-model-version"] == tag
    assert [item["label"] for item in response.json()["predictions"]] == [row["prediction"] for row in predictions]
