"""What `bloomery gc` removes, and what it keeps."""

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
from tests.processes import responds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[4]
Bloomery = Callable[..., subprocess.CompletedProcess[str]]
# Garbage collection that is killed after its second removal.
_KILLED = """
import os
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
apply_engine_environment()
require_state_folder()
from bloomery.tasks.registry import garbage_collection
gone = []
def die(piece):
    gone.append(piece)
    if len(gone) == 2:
        os._exit(9)
garbage_collection.collect_garbage(garbage_collection.plan_unreachable(1, [], 14), die)
"""


def refused(folder: Path, home: Path, forked_bloomery: Bloomery, **changes: dict[str, Any]) -> None:
    """Another version of `digits-quick`, which misses its gate."""
    document = yaml.safe_load(QUICK.read_text())
    for part, values in (changes | {"gates": {"min_accuracy": 0.9999}}).items():
        document[part] = {**document.get(part, {}), **values}
    recipe = folder / "mine.yaml"
    recipe.write_text(yaml.safe_dump(document))
    ended = forked_bloomery(home, "run", str(recipe))
    assert ended.returncode == 4, ended.stdout + ended.stderr


def test_gc_frees_what_no_kept_version_needs_even_if_it_was_killed(
    quick_run: tuple[Path, dict[str, Any]],
    forked_bloomery: Bloomery,
    tmp_path: Path,
    clean_environment: Callable[..., dict[str, str]],
) -> None:
    copy = copy_of(quick_run[0], tmp_path)
    once: dict[str, Any] = {"compression": {"fine_tune": {"epochs": 3}}}
    refused(tmp_path, copy, forked_bloomery, **once)
    refused(tmp_path, copy, forked_bloomery, budget={"accuracy_drop": 0.0001})
    before = sorted(copy.glob("stages/*/*"))

    dry = json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--json").stdout)
    assert not dry["done"]
    assert dry["would_free_bytes"] > 0
    assert [one["version"] for one in dry["versions_freed"]] == [2]
    assert {one["version"] for one in dry["versions_kept"]} == {1, 3}
    assert {"output", "bento", "model file"} <= {removal["kind"] for removal in dry["removals"]}
    assert sorted(copy.glob("stages/*/*")) == before
    spared = json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--keep-version", "digits:2", "--json").stdout)
    assert spared["versions_freed"] == []
    with serving(copy, clean_environment(copy), tmp_path / "serve.log", "--shadow", "digits:2"):
        beside = json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--yes", "--json").stdout)
        assert beside["versions_freed"] == []
        assert [one["why"] for one in beside["versions_kept"] if one["version"] == 2] == ["in use"]

    note = copy / "runs" / "a.json"  # a run on another machine
    note.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 0.0}))
    busy = json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--yes", "--json").stdout)
    assert (busy["running_pids"], busy["removals"]) == ([1], [])
    note.unlink()

    environment = clean_environment(copy, PYTHONPATH=str(ROOT), PATH=os.environ["PATH"])
    killed = subprocess.run([sys.executable, "-c", _KILLED], env=environment, cwd=ROOT, check=False)
    assert killed.returncode == 9
    command = [sys.executable, "-m", "bloomery.flows.cli", "gc", "--keep", "1", "--yes", "--json"]
    several = [subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    told = [json.loads(one.communicate(timeout=120)[0]) for one in several]
    assert [one.returncode for one in several] == [0, 0]
    assert all(one["done"] for one in told)
    assert sum(one["freed_bytes"] for one in told) > 0
    assert not [removal for removal in dry["removals"] if (copy / removal["path"]).exists()]
    assert json.loads(forked_bloomery(copy, "gc", "--keep", "1", "--json").stdout)["removals"] == []

    shown = json.loads(forked_bloomery(copy, "show", "digits", "--json").stdout)["versions"]
    assert [one["version"] for one in shown if one["freed"] is not None] == [2]
    steps = json.loads(forked_bloomery(copy, "check", str(QUICK), "--json").stdout)["stages"]
    assert all(step["found"] for step in steps)
    gone = forked_bloomery(copy, "promote", "digits:2", "--despite-refusal")
    assert gone.returncode == 2, gone.stderr
    assert "was freed by `bloomery gc` on" in gone.stderr
    kept = forked_bloomery(copy, "promote", "digits:3", "--despite-refusal")
    assert kept.returncode == 0, kept.stderr
    assert forked_bloomery(copy, "rollback", "digits").returncode == 0

    refused(tmp_path, copy, forked_bloomery, **once)  # the recipe of the freed version restores it
    shown = json.loads(forked_bloomery(copy, "show", "digits", "--json").stdout)["versions"]
    assert {one["version"] for one in shown} == {1, 2, 3}
    assert [one["version"] for one in shown if one["freed"] is not None] == []
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
