"""Stage outputs are complete or absent, found again, and computed once."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bloomery.data_contracts.errors import StateUnwritable
from bloomery.data_contracts.records.records import RawRows, Release
from bloomery.tasks.orchestration import stage_store
from bloomery.tasks.orchestration.stage_store import Output
from tests.mounts import mount

KEY = "0" * 32


def raw_rows(uri: str, digest: str) -> RawRows:
    fields = {"num_rows": 1, "malformed_uri": uri, "num_malformed": 0, "is_text": False}
    return RawRows(uri=uri, source="here", digest=digest, **fields)


def make(out: Output, text: str = "rows") -> RawRows:
    out.path("rows.txt").write_text(text)
    return raw_rows(out.uri("rows.txt"), text)


def test_an_output_is_computed_once_and_then_found(home: Path) -> None:
    first = stage_store.find_or_compute("ingest", KEY, RawRows, make)
    second = stage_store.find_or_compute("ingest", KEY, RawRows, lambda out: pytest.fail("computed again"))
    assert (first.was_found, second.was_found) == (False, True)
    assert first.record == second.record
    assert (home / first.record.uri).read_text() == "rows"


def test_an_output_with_a_changed_file_is_computed_again(home: Path) -> None:
    record = stage_store.find_or_compute("ingest", KEY, RawRows, make).record
    (home / record.uri).write_text("rowz")
    assert stage_store.find("ingest", KEY, RawRows) is None
    assert not stage_store.find_or_compute("ingest", KEY, RawRows, make).was_found
    assert (home / record.uri).read_text() == "rows"


@pytest.mark.parametrize("damage", ["", "{", '{"stage": "ingest"}'])
def test_a_damaged_record_counts_as_absent(home: Path, damage: str) -> None:
    stage_store.find_or_compute("ingest", KEY, RawRows, make)
    (home / "stages" / "ingest" / KEY / "record.json").write_text(damage)
    assert stage_store.find("ingest", KEY, RawRows) is None


def test_an_output_that_is_not_complete_outside_its_folder_is_computed_again(home: Path) -> None:
    stage_store.find_or_compute("ingest", KEY, RawRows, make)
    again = stage_store.find_or_compute("ingest", KEY, RawRows, make, is_complete=lambda record: False)
    assert not again.was_found


def test_a_stage_that_fails_leaves_no_output(home: Path) -> None:
    def fail(out: Output) -> RawRows:
        out.path("half.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        stage_store.find_or_compute("ingest", KEY, RawRows, fail)
    assert not list((home / "stages" / ".tmp").iterdir())
    assert not (home / "stages" / "ingest").exists()


def _save_by_torch(path: Path) -> None:
    import torch

    torch.save(torch.zeros(50_000), path)


@pytest.mark.parametrize(
    "write", [lambda path: path.write_bytes(b"0" * 100_000), _save_by_torch], ids=["bytes", "tensors"]
)
def test_a_full_disk_is_reported_and_leaves_no_output(write: Callable[[Path], Any], home: Path) -> None:
    def write_much(out: Output) -> RawRows:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            write(out.path("large.bin"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        raise AssertionError("the limit did not hold")

    with pytest.raises(StateUnwritable) as caught:
        stage_store.find_or_compute("ingest", KEY, RawRows, write_much)
    assert "stage ingest could not write" in caught.value.found
    assert not list((home / "stages" / ".tmp").iterdir())


def test_a_disk_that_becomes_read_only_during_a_stage_is_reported(home: Path) -> None:
    """Linux remounts a faulty disk read-only. Leftovers cannot be removed then, so the next run removes them."""

    def write_much(out: Output) -> RawRows:
        out.path("small.bin").write_bytes(b"0")
        assert mount("-o", "remount,bind,ro", str(folder))
        out.path("large.bin").write_bytes(b"0" * 100_000)
        raise AssertionError("it could still be written")

    folder = home / "stages" / ".tmp"
    folder.mkdir(parents=True)
    if not mount("--bind", str(folder), str(folder)):
        pytest.skip("this user may not mount a disk")
    try:
        with pytest.raises(StateUnwritable, match="stage ingest could not write: Read-only file system"):
            stage_store.find_or_compute("ingest", KEY, RawRows, write_much)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert stage_store.find_or_compute("ingest", KEY, RawRows, make).record.digest == "rows"
    stage_store.remove_leftovers()
    assert not list(folder.iterdir())


def _make_slowly(marks: str) -> None:
    def compute(out: Output) -> RawRows:
        with Path(marks).open("a") as stream:
            stream.write("computed\n")
        time.sleep(1)
        return make(out)

    assert stage_store.find_or_compute("ingest", KEY, RawRows, compute).record.digest == "rows"


def test_two_processes_at_once_compute_once(home: Path, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_make_slowly, args=(str(marks),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert marks.read_text() == "computed\n"


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_living_one_are_not(home: Path) -> None:
    code = (
        "import sys, time\nfrom bloomery.tasks.orchestration import stage_store as store\n"
        "from bloomery.data_contracts.records.records import RawRows\n"
        "def compute(out):\n    out.path('half').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
        f"store.find_or_compute('ingest', '{KEY}', RawRows, compute)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "BLOOMERY_HOME": str(home)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    temporary = home / "stages" / ".tmp" / f"ingest-{KEY}"
    stage_store.remove_leftovers()
    assert (temporary / "half").is_file()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (temporary / "half").is_file()
    stage_store.remove_leftovers()
    assert not temporary.exists()
    assert not stage_store.find_or_compute("ingest", KEY, RawRows, make).was_found


def test_a_key_depends_on_code_records_and_recipe_but_not_on_the_uri_of_a_record() -> None:
    def record(uri: str, digest: str) -> RawRows:
        return raw_rows(uri, digest)

    key = stage_store.key_of("validate", "code", [record("a", "d"), {"limit": 1}])
    assert key == stage_store.key_of("validate", "code", [record("b", "d"), {"limit": 1}])
    other_keys = [
        stage_store.key_of("prepare", "code", [record("a", "d"), {"limit": 1}]),
        stage_store.key_of("validate", "other", [record("a", "d"), {"limit": 1}]),
        stage_store.key_of("validate", "code", [record("a", "e"), {"limit": 1}]),
        stage_store.key_of("validate", "code", [record("a", "d"), {"limit": 2}]),
    ]
    assert len({key, *other_keys}) == 5


def test_equal_weights_of_other_data_have_another_key(release: Release) -> None:
    """Training reads two splits; the later stages read the test split and unlabelled rows, too."""
    trained = release.bento.choice.candidates.trained
    other_data = trained.model_copy(update={"dataset": trained.dataset.model_copy(update={"digest": "another"})})
    moved = trained.model_copy(update={"uri": "elsewhere"})
    keys = [stage_store.key_of("compress", "code", [record]) for record in (trained, moved, other_data)]
    assert keys[0] == keys[1] != keys[2]


def test_a_stored_record_names_its_stage_and_its_key(home: Path) -> None:
    record = stage_store.find_or_compute("ingest", KEY, RawRows, make).record
    stored = json.loads((home / "stages" / "ingest" / KEY / "record.json").read_text())
    assert (stored["stage"], stored["key"]) == ("ingest", KEY)
    assert stored["files"]["rows.txt"]["size_bytes"] == (home / record.uri).stat().st_size
