"""The pooling and the modules with which sentence-transformers computes a vector are kept, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import POOLING_FILE, Checkpoint
from bloomery.tasks.checkpoints.sentence_vectors import (
    find_default_prompt,
    find_other_modules,
    lowers_case,
    read_pooling,
)
from tests.tasks.checkpoints.test_hub import write_listing


def write_modules(folder: Path, *names: str, package: str = "sentence_transformers.models") -> None:
    """Modules with the names, of which each but the first has a folder such as 1_Pooling."""
    entries = [
        {"path": f"{number}_{name}" if number else "", "type": f"{package}.{name}"} for number, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))


def checkpoint_with(folder: Path, options: dict[str, Any] | None, *names: str) -> Checkpoint:
    """A checkpoint for text whose 1_Pooling/config.json has these options."""
    files = ["config.json", "tokenizer.json", *names]
    if options is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / POOLING_FILE).write_text(json.dumps(options))
        files.append(POOLING_FILE)
    return Checkpoint(reference="mine", folder=str(folder), files=dict.fromkeys(files, "0" * 64))


@pytest.mark.parametrize(
    ("options", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "last"),
        ({"word_embedding_dimension": 32}, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_the_pooling_is_that_of_the_file(options: dict[str, Any], pooling: str, tmp_path: Path) -> None:
    assert read_pooling(checkpoint_with(tmp_path, options)) == pooling


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max_tokens"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls_token and mean_tokens"),
        ({"pooling_mode_mean_tokens": False}, "nothing"),
        ({"pooling_mode": "mean+max"}, "mean and max"),
        ({"pooling_mode": 7}, "7"),
    ],
)
def test_another_pooling_is_refused(options: dict[str, Any], names: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=f"mine pools by {names}\n") as caught:
        read_pooling(checkpoint_with(tmp_path, options))
    assert "set `pooling`" in caught.value.remedy


def test_the_folder_of_the_pooling_is_that_of_the_modules(tmp_path: Path) -> None:
    write_modules(tmp_path, "Transformer", "Dense", "Pooling")
    (tmp_path / "2_Pooling").mkdir()
    (tmp_path / "2_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert read_pooling(checkpoint_with(tmp_path, None)) == "cls"


def test_modules_without_a_known_pooling_are_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, "Transformer", "WeightedLayerPooling")
    with pytest.raises(RecipeInvalid, match="by Transformer, WeightedLayerPooling, without a pooling"):
        read_pooling(checkpoint_with(tmp_path, None))
    write_modules(tmp_path)
    with pytest.raises(RecipeInvalid, match="by no module, without a pooling"):
        read_pooling(checkpoint_with(tmp_path, None))
    write_modules(tmp_path, "Transformer", "Pooling")
    with pytest.raises(DataMissing, match=r"names a pooling whose config\.json is missing"):
        read_pooling(checkpoint_with(tmp_path, None))


@pytest.mark.parametrize("content", ["{}", "[1]", "[{"])
def test_a_damaged_list_of_modules_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(RecipeInvalid, match=r"modules\.json of the checkpoint is no"):
        find_other_modules(tmp_path)


def test_modules_that_change_a_vector_are_found(tmp_path: Path) -> None:
    assert find_other_modules(tmp_path) == ()
    write_modules(tmp_path, "Transformer", "Pooling", "Normalize")
    assert find_other_modules(tmp_path) == ()
    write_modules(tmp_path, "Transformer", "Pooling", "Dense", "Normalize", package="sentence_transformers.modules.x")
    assert find_other_modules(tmp_path) == ("Dense",)


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({"prompts": {"query": "query: "}, "default_prompt_name": "query"}, "query: "),
        ({"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "document"}, ""),
        ({"prompts": {"query": "query: "}, "default_prompt_name": None}, ""),
        ({"__version__": {"transformers": "4.6.1"}}, ""),
    ],
)
def test_the_prompt_before_each_text_is_found(options: dict[str, Any], prompt: str, tmp_path: Path) -> None:
    assert find_default_prompt(tmp_path) == ""
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(options))
    assert find_default_prompt(tmp_path) == prompt


@pytest.mark.parametrize("is_lowered", [False, True])
def test_a_lower_case_that_the_tokenizer_does_not_have_is_found(
    tiny_bert: Path, tiny_roberta: Path, tmp_path: Path, is_lowered: bool
) -> None:
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": is_lowered}))
    for folder, has_case in ((tiny_bert, False), (tiny_roberta, True)):
        (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        assert lowers_case(tmp_path) == (is_lowered and has_case)


def test_the_pooling_of_a_cache_with_single_files_is_unknown(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    with pytest.raises(DataMissing, match="may have only some files of mine, so its pooling is unknown") as caught:
        read_pooling(checkpoint_with(snapshot, None))
    assert f"hf download org/name --revision {'a' * 40}" in caught.value.remedy
    write_listing(snapshot, "config.json", "tokenizer.json")
    assert read_pooling(checkpoint_with(snapshot, None)) is None
    write_listing(snapshot, "config.json", "tokenizer.json", "modules.json")  # a download that was interrupted
    with pytest.raises(DataMissing, match="may have only some files of mine"):
        read_pooling(checkpoint_with(snapshot, None))
    assert read_pooling(checkpoint_with(tmp_path, None)) is None  # a folder that is no snapshot
    image = Checkpoint(reference="mine", folder=str(snapshot), files={"preprocessor_config.json": "0" * 64})
    assert read_pooling(image) is None
