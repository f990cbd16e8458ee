"""`bloomery gc` removes what no kept version needs, and keeps everything else."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server
from tests.conftest import QUICK, copy_of
from tests.forks import Forks
from tests.processes import responds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[4]
Bloomery = Callable[..., subprocess.CompletedProcess[str]]
# Garbage collection that is killed after its second removal.
_KILLED_GC = """
import os
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
apply_engine_environment()
require_state_folder()
from bloomery.tasks.registry import garbage_collection
removals = []
def exit_after_two(removal):
    removals.append(removal)
    if len(removals) == 2:
        os._exit(9)
garbage_collection.collect_garbage(garbage_collection.plan_unreachable(1, [], 14), exit_after_two)
"""


def add_refused_version(folder: Path, home: Path, forked_bloomery: Bloomery, **changes: dict[str, Any]) -> None:
    """Runs `digits-quick` with changes and a gate that it misses, which registers another version."""
    document = yaml.safe_load(QUICK.read_text())
    for section, values in (changes | {"gates": {"min_accuracy": 0.9999}}).items():
        document[section] = {**document.get(section, {}), **values}
    recipe = folder / "mine.yaml"
    recipe.write_text(yaml.safe_dump(document))
    completed = forked_bloomery(home, "run", str(recipe))
    assert completed.returncode == 4, completed.stdout + completed.stderr


def test_gc_frees_what_no_kept_version_needs_even_if_it_was_killed(
    quick_run: tuple[Path, dict[str, Any]],
    forked_bloomery: Bloomery,
    forks: Forks,
    prefect: str,
    tmp_path: Path,
    clean_environment: Callable[..., dict[str, str]],
) -> None:
    copy = copy_of(quick_run[0], tmp_path)
    changes: dict[str, Any] = {"compression": {"fine_tune": {"epochs": 3}}}
    add_refused_version(tmp_path, copy, forked_bloomery, **changes)
    add_refused_version(tmp_path, copy, forked_bloomery, budget={"accuracy_drop": 0.0001})
    before = sorted(copy.glob("stages/*/*"))

    dry_run = json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--json").stdout)
    assert not dry_run["done"]
    assert dry_run["would_free_bytes"] > 0
    assert [version["version"] for version in dry_run["versions_freed"]] == [2]
    assert {version["version"] for version in dry_run["versions_kept"]} == {1, 3}
    assert {"output", "bento", "model file"} <= {removal["kind"] for removal in dry_run["removals"]}
    (registry_copy,) = [removal["path"] for removal in dry_run["removals"] if removal["kind"] == "registry copy"]
    assert (copy / registry_copy / "MLmodel").is_file()
    assert sorted(copy.glob("stages/*/*")) == before
    kept_version = json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--keep-version", "digits:2", "--json").stdout)
    assert kept_version["versions_freed"] == []
    with serving(copy, clean_environment(copy), tmp_path / "serve.log", "--shadow", "digits:2"):
        while_serving = json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--yes", "--json").stdout)
        assert while_serving["versions_freed"] == []
        assert [version["reason"] for version in while_serving["versions_kept"] if version["version"] == 2] == [
            "in use"
        ]

    run_file = copy / "runs" / "a.json"  # a run on another machine
    run_file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    while_running = json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--yes", "--json").stdout)
    assert (while_running["running_pids"], while_running["removals"]) == ([1], [])
    run_file.unlink()

    environment = clean_environment(copy, PYTHONPATH=str(ROOT), PATH=os.environ["PATH"])
    killed = subprocess.run([sys.executable, "-c", _KILLED_GC], env=environment, cwd=ROOT, check=False)
    assert killed.returncode == 9
    outputs = [tmp_path / "gc-0.json", tmp_path / "gc-1.json"]
    variables = clean_environment(copy, PREFECT_API_URL=prefect)
    command = ("gc", "--keep", "1", "--yes", "--json")
    pids = [forks.start(*command, environment=variables, out=out, err=tmp_path / "gc.err") for out in outputs]
    assert [forks.wait(pid) for pid in pids] == [0, 0], (tmp_path / "gc.err").read_text()
    documents = [json.loads(out.read_text()) for out in outputs]
    assert all(document["done"] for document in documents)
    assert sum(document["freed_bytes"] for document in documents) > 0
    assert not [removal for removal in dry_run["removals"] if (copy / removal["path"]).exists()]
    assert json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--json").stdout)["removals"] == []

    versions = json.loads(forked_bloomery(copy, "show", "digits", "--json").stdout)["versions"]
    assert [version["version"] for version in versions if version["freed"] is not None] == [2]
    steps = json.loads(forked_bloomery(copy, "check", str(QUICK), "--json").stdout)["stages"]
    assert all(step["digest"] for step in steps)
    promotion = forked_bloomery(copy, "promote", "digits:2", "--despite-refusal")
    assert promotion.returncode == 2, promotion.stderr
    assert "was freed by `bloomery gc` on" in promotion.stderr
    kept_promotion = forked_bloomery(copy, "promote", "digits:3", "--despite-refusal")
    assert kept_promotion.returncode == 0, kept_promotion.stderr
    assert forked_bloomery(copy, "rollback", "digits").returncode == 0

    add_refused_version(tmp_path, copy, forked_bloomery, **changes)  # the recipe of the freed version restores it
    versions = json.loads(forked_bloomery(copy, "show", "digits", "--json").stdout)["versions"]
    assert {version["version"] for version in versions} == {1, 2, 3}
    assert [version["version"] for version in versions if version["freed"] is not None] == []
    assert (copy / registry_copy / "MLmodel").is_file()
    assert forked_bloomery(copy, "promote", "digits:2", "--despite-refusal").returncode == 0


@contextlib.contextmanager
def serving(home: Path, environment: dict[str, str], log: Path, *more: str) -> Iterator[None]:
    port = find_free_port()

    command = [sys.executable, "-m", "bloomery.flows.cli", "serve", "digits", "--port", str(port), *more]
    with tethered_server(
        command, is_ready=partial(responds, f"http://127.0.0.1:{port}/readyz"), log=log, environment=environment
    ) as wait_until_ready:
        wait_until_ready()
        yield
