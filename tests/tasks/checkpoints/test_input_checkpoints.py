"""What is wrong with a checkpoint's tokenizer is reported when the recipe is read."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bloomery.data_contracts.errors import BloomeryError, EngineMissing, OutputCorrupt
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Fused, Mlp
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.input_checkpoints import add_input_checkpoints, require_unchanged_weights
from bloomery.tasks.train.user_code import bundle_user_code

pytestmark = pytest.mark.usefixtures("home")
FEATURES = Features.model_validate(
    {
        "key": "id",
        "label": "kind",
        "inputs": [{"kind": "text", "column": "text", "length": 16, "tokenizer": "checkpoint"}],
    }
)


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bert, tmp_path / "tiny")
    return tmp_path / "tiny"


def add(folder: Path, features: Features = FEATURES) -> Features:
    return add_input_checkpoints(
        features, bundle_user_code(Pretrained(kind="pretrained", checkpoint=str(folder)), folder)
    )


def test_a_text_gets_the_tokenizers_files_alone(folder: Path) -> None:
    (source,) = add(folder).inputs
    assert source.kind == "text"
    assert source.checkpoint is not None
    assert set(source.checkpoint.files) == {"tokenizer.json", "tokenizer_config.json"}
    identity = add(folder).identity()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "initializer_range": 0.5}))
    assert add(folder).identity() == identity


def test_another_network_and_another_tokenizer_get_none() -> None:
    assert add_input_checkpoints(FEATURES, Mlp(kind="mlp")) == FEATURES


def test_without_transformers_the_recipe_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find_spec(name))
    with pytest.raises(
        EngineMissing, match=r"transformers is not installed(.|\n)*pip install 'bloomery\[huggingface\]'"
    ):
        add(folder)


def replace(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)


def rename(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").rename(folder / name)


def shrink_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    replace(folder, "config.json", json.dumps({**config, "vocab_size": 50}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (
            lambda folder: rename(folder, "vocab.txt"),
            "only vocab.txt, without tokenizer.json(.|\n)*save_pretrained",
        ),
        (lambda folder: rename(folder, "spiece.model"), "pip install sentencepiece"),
        (lambda folder: replace(folder, "tokenizer.json", "{"), "tokenizer.json is damaged"),
        (lambda folder: replace(folder, "tokenizer.json", "{}"), "tokenizer.json is damaged"),
        (lambda folder: replace(folder, "tokenizer.json", ""), "tokenizer.json is damaged"),
        (
            lambda folder: replace(folder, "tokenizer_config.json", "["),
            "tokenizer_config.json of the checkpoint is not",
        ),
        (
            lambda folder: replace(folder, "tokenizer_config.json", '{"auto_map": {"AutoTokenizer": "a.B"}}'),
            "which is never executed",
        ),
        (shrink_vocabulary, "the tokenizer has 108 tokens, but the network 50"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_refused(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(BloomeryError) as error:
        add(folder)
    assert error.value.exit_code == 2
    error.match(message)


@pytest.mark.parametrize(("length", "is_enough"), [(1, False), (2, False), (3, True)])
def test_a_text_needs_room_besides_the_special_tokens(folder: Path, length: int, is_enough: bool) -> None:
    source = FEATURES.inputs[0].model_copy(update={"length": length})
    features = FEATURES.model_copy(update={"inputs": (source,)})
    if is_enough:
        add(folder, features)
    else:
        with pytest.raises(BloomeryError, match=f"is {length}, but 2 special tokens are added"):
            add(folder, features)


@pytest.mark.parametrize("is_branch", [False, True])
def test_weights_that_have_changed_since_the_recipe_was_read_are_refused(folder: Path, is_branch: bool) -> None:
    network = bundle_user_code(Pretrained(kind="pretrained", checkpoint=str(folder)), folder)
    model = Fused(kind="fused", branches={"text": network}) if is_branch else network
    require_unchanged_weights(model)
    (folder / "tokenizer.json").write_text("{}")  # prepared rows do not depend on it any more
    require_unchanged_weights(model)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    with pytest.raises(OutputCorrupt, match=r"model\.safetensors of the checkpoint .*tiny has changed"):
        require_unchanged_weights(model)
    require_unchanged_weights(Mlp(kind="mlp"))
