"""Checkpoints of an earlier run are found again by their digests, or the error names the folder that has moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Fused, Model
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.relocation import relocate_checkpoints
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint
from tests.tasks.checkpoints.test_hub import FIRST, SECOND, write_snapshot

TEXT = {"kind": "text", "column": "text", "length": 16, "tokenizer": "checkpoint"}


def features_of(checkpoint: Checkpoint) -> Features:
    source = {**TEXT, "checkpoint": checkpoint.model_dump()}
    return Features.model_validate({"key": "id", "label": "kind", "inputs": [source]})


def folders_of(checkpoint: Checkpoint, *, is_branch: bool = False) -> list[str]:
    network = Pretrained(kind="pretrained", checkpoint=checkpoint.reference, resolved=checkpoint)
    model: Model = Fused(kind="fused", branches={"text": network}) if is_branch else network
    features, model = relocate_checkpoints(features_of(checkpoint), model)
    network = model.branches["text"] if isinstance(model, Fused) else model
    return [features.inputs[0].checkpoint.folder, network.resolved.folder]


@pytest.fixture
def cache(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_that_has_moved_is_named_and_may_be_linked(tiny_bert: Path, tmp_path: Path, home: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "old")
    checkpoint = resolve_checkpoint("old", tmp_path)
    assert folders_of(checkpoint) == [str(tmp_path / "old")] * 2
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(DataMissing, match=f"the folder {tmp_path}/old no longer has config.json") as caught:
        folders_of(checkpoint)
    assert f"ln -s NEW_PLACE {tmp_path}/old" in caught.value.remedy
    (tmp_path / "old").symlink_to(tmp_path / "new")
    assert folders_of(checkpoint) == [str(tmp_path / "old")] * 2


@pytest.mark.parametrize("reference", ["hf://org/name", "hf://org/name@main", "org/name"])
def test_a_cache_that_has_moved_is_found(cache: Path, tmp_path: Path, reference: str, monkeypatch) -> None:
    write_snapshot(cache, FIRST)
    checkpoint = resolve_checkpoint(reference, tmp_path)
    write_snapshot(cache, SECOND)
    cache.rename(tmp_path / "new")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "new"))
    folder = tmp_path / "new" / "models--org--name" / "snapshots" / FIRST
    assert folders_of(checkpoint, is_branch=True) == [str(folder)] * 2
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataMissing, match=f"and {folder} has another config.json"):
        folders_of(checkpoint)


def test_a_network_without_a_checkpoint_stays() -> None:
    features = Features.model_validate(
        {"key": "id", "label": "kind", "inputs": [{"kind": "number", "columns": ["age"]}]}
    )
    network = Pretrained(kind="pretrained", checkpoint="unresolved")
    assert relocate_checkpoints(features, network) == (features, network)
