"""Checkpoints of the hub: the local cache first, the network where that does not suffice, and a pinned revision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.numpy import save_file

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.tasks.checkpoints import hub
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint

FIRST, SECOND = "a" * 40, "b" * 40


def write_snapshot(cache: Path, commit: str, branch: str = "main", *, is_complete: bool = True) -> Path:
    folder = cache / "models--org--name"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "bert", "commit": commit}))
    if is_complete:
        (snapshot / "tokenizer.json").write_text("{}")
        save_file({"a": np.zeros(2, np.float32)}, snapshot / "model.safetensors")
    return snapshot


def write_listing(snapshot: Path, *names: str) -> None:
    """The list of a commit's files, as a download writes it before it begins."""
    folder = snapshot.parent.parent / "trees"
    folder.mkdir(exist_ok=True)
    files = {name: {"size": 1, "blob_id": "0" * 40} for name in names}
    (folder / f"{snapshot.name}.json").write_text(json.dumps({"format_version": 1, "files": files}))


@pytest.fixture
def cache(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that nothing listens for."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def raise_on_download(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    """Every look-up that may use the network fails; those in the cache do not."""
    original = huggingface_hub.snapshot_download

    def download(*names: str, **options: Any) -> str:
        if options.get("local_files_only"):
            return original(*names, **options)
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


@pytest.mark.parametrize("reference", ["hf://org/name", "hf://org/name@main", f"hf://org/name@{FIRST}", "org/name"])
def test_what_the_cache_has_is_taken_without_a_network(cache: Path, tmp_path: Path, reference: str) -> None:
    snapshot = write_snapshot(cache, FIRST)
    checkpoint = resolve_checkpoint(reference, tmp_path)
    assert (checkpoint.folder, checkpoint.revision) == (str(snapshot), FIRST)
    assert checkpoint.name == f"{reference} ({FIRST})"


def test_a_branch_stays_at_its_commit_when_it_moves_on(cache: Path, tmp_path: Path) -> None:
    write_snapshot(cache, FIRST)
    assert resolve_checkpoint("hf://org/name", tmp_path).revision == FIRST
    write_snapshot(cache, SECOND)
    assert resolve_checkpoint("hf://org/name", tmp_path).revision == FIRST
    assert resolve_checkpoint(f"hf://org/name@{SECOND}", tmp_path).revision == SECOND


def test_a_folder_beside_the_recipe_comes_before_the_cache(cache: Path, tmp_path: Path) -> None:
    snapshot = write_snapshot(cache, FIRST)
    (tmp_path / "org").mkdir()
    snapshot.rename(tmp_path / "org" / "name")
    write_snapshot(cache, SECOND)
    checkpoint = resolve_checkpoint("org/name", tmp_path)
    assert (checkpoint.folder, checkpoint.revision) == (str(tmp_path / "org" / "name"), None)


def test_a_name_that_is_nowhere_is_no_folder(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"folder .*org/name does not exist(.|\n)*hf://org/name"):
        resolve_checkpoint("org/name", tmp_path)


def test_without_a_network_a_missing_checkpoint_is_an_error(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataMissing, match=r"is not in the local cache, and cannot be downloaded(.|\n)*hf download org/name"
    ):
        resolve_checkpoint("hf://org/name", tmp_path)


def test_a_cache_with_a_part_of_the_files_is_completed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_snapshot(cache, FIRST, is_complete=False)
    requests: list[dict[str, Any]] = []
    original = huggingface_hub.snapshot_download

    def download(*names: str, **options: Any) -> str:
        if options.get("local_files_only"):
            return original(*names, **options)
        requests.append(options)
        (snapshot / "tokenizer.json").write_text("{}")
        write_listing(snapshot, "config.json", "tokenizer.json", "model.safetensors", "code.py", "README.md")
        (snapshot / "README.md").write_text("# Name")
        save_file({"a": np.zeros(2, np.float32)}, snapshot / "model.safetensors")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_checkpoint("hf://org/name", tmp_path).weights == ("model.safetensors",)
    (request,) = requests
    assert not [pattern for pattern in request["allow_patterns"] if pattern.endswith((".py", ".bin", ".pt", "*"))]
    assert resolve_checkpoint("hf://org/name", tmp_path).revision == FIRST
    assert len(requests) == 1


@pytest.mark.parametrize(
    "name",
    ["1_Pooling/config.json", "modules.json", "sentence_bert_config.json", "model-00002-of-00002.safetensors"],
)
def test_a_download_that_was_interrupted_is_continued_or_refused(cache: Path, tmp_path: Path, name: str) -> None:
    snapshot = write_snapshot(cache, FIRST)
    write_listing(snapshot, "config.json", "tokenizer.json", "model.safetensors", name, "README.md")
    with pytest.raises(DataMissing, match=f"lacks {name} in the local cache, and cannot be downloaded"):
        resolve_checkpoint("hf://org/name", tmp_path)
    (snapshot / name).parent.mkdir(exist_ok=True)
    (snapshot / name).write_text("{}")
    assert resolve_checkpoint("hf://org/name", tmp_path).revision == FIRST  # the README is not needed


def test_files_of_other_programs_are_completed_where_there_is_a_network(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_snapshot(cache, FIRST)
    original = huggingface_hub.snapshot_download

    def download(*names: str, **options: Any) -> str:
        if not options.get("local_files_only"):
            (snapshot / "1_Pooling").mkdir()
            (snapshot / "1_Pooling" / "config.json").write_text("{}")
        return original(*names, **options | {"local_files_only": True})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert "1_Pooling/config.json" in resolve_checkpoint("hf://org/name", tmp_path).files


def test_a_commit_that_has_left_the_cache_is_named(cache: Path, home: Path, tmp_path: Path) -> None:
    snapshot = write_snapshot(cache, FIRST)
    assert resolve_checkpoint("org/name", tmp_path).revision == FIRST
    shutil.rmtree(snapshot)
    write_snapshot(cache, SECOND)
    with pytest.raises(DataMissing, match=f"no longer has the commit {FIRST} of org/name") as caught:
        resolve_checkpoint("org/name", tmp_path)
    assert f"hf download org/name --revision {FIRST}" in caught.value.remedy
    (home / "checkpoint-revisions.json").unlink()
    assert resolve_checkpoint("org/name", tmp_path).revision == SECOND


def test_a_commit_that_the_hub_no_longer_has_is_named_with_its_place(
    cache: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "checkpoint-revisions.json").write_text(json.dumps({"org/name@v1": FIRST}))
    raise_on_download(monkeypatch, RevisionNotFoundError.__new__(RevisionNotFoundError))
    with pytest.raises(DataMissing, match=f"has no revision {FIRST}") as caught:
        resolve_checkpoint("hf://org/name@v1", tmp_path)
    assert "remove 'org/name@v1' from" in caught.value.remedy


def test_without_a_network_weights_in_the_cache_suffice(cache: Path, tmp_path: Path) -> None:
    snapshot = write_snapshot(cache, FIRST)
    (snapshot / "tokenizer.json").unlink()
    assert resolve_checkpoint("hf://org/name", tmp_path).revision == FIRST


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "needs the agreement to its terms"),
        (RepositoryNotFoundError, "is not on the hub, or private"),
        (RevisionNotFoundError, "has no revision v1"),
        (OSError, "cannot be downloaded: no space"),
    ],
)
def test_what_the_hub_answers_is_reported(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str
) -> None:
    failure = kind.__new__(kind)
    failure.args = ("no space",)
    raise_on_download(monkeypatch, failure)
    with pytest.raises(DataMissing, match=message):
        resolve_checkpoint("hf://org/name@v1", tmp_path)


@pytest.mark.parametrize(
    "reference", ["hf://", "hf://name", "hf://a/b/c", "hf://org/na me", "hf://org/name@", "hf://../x"]
)
def test_a_reference_that_cannot_be_of_the_hub_is_refused(cache: Path, tmp_path: Path, reference: str) -> None:
    with pytest.raises(RecipeInvalid, match="does not name a checkpoint of the hub"):
        resolve_checkpoint(reference, tmp_path)


def test_a_damaged_file_of_pins_counts_as_none(cache: Path, home: Path, tmp_path: Path) -> None:
    write_snapshot(cache, FIRST)
    (home / "checkpoint-revisions.json").write_text("[1")
    assert resolve_checkpoint("hf://org/name", tmp_path).revision == FIRST
    assert hub.is_hub_name("org/name@v1.0")
    assert not hub.is_hub_name("./org")
