"""Initial weights in folders that others have written, and what states their tokens and classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.output_units import ClassOutput
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.kinds.text import FittedText
from bloomery.models.training.transfer_config import StartFrom
from bloomery.models.training.transfer_learning import Names
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.train.initial_weights import locate_initial_weights, read_weights
from bloomery.tasks.train.weight_names import find_source, names_of_encoder, read_names

ONE, TWO = {"one.weight": torch.ones(2)}, {"two.weight": torch.zeros(3)}


def start_from(folder: Path, **options: object) -> StartFrom:
    return StartFrom(network=str(folder), **options)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.safetensors", "other.safetensors"])
def test_a_folder_has_one_file_of_any_name(tmp_path: Path, name: str):
    save_file(ONE, tmp_path / name)
    (tmp_path / "pytorch_model.bin").write_text("a pickle is not needed")
    weights = locate_initial_weights(start_from(tmp_path))
    assert weights.uri == str(tmp_path / name)
    assert weights.source is None
    assert set(read_weights(settings().path(weights.uri))) == {"one.weight"}


def test_weights_in_several_files_are_one_network(tmp_path: Path):
    save_file(ONE, tmp_path / "model-00001-of-00002.safetensors")
    save_file(TWO, tmp_path / "model-00002-of-00002.safetensors")
    weights = locate_initial_weights(start_from(tmp_path))
    assert set(read_weights(settings().path(weights.uri))) == {"one.weight", "two.weight"}
    save_file({"two.weight": torch.ones(3)}, tmp_path / "model-00002-of-00002.safetensors")
    assert locate_initial_weights(start_from(tmp_path)).digest != weights.digest


def test_pickled_weights_are_never_loaded(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(RecipeInvalid, match="pickled weights only") as refusal:
        locate_initial_weights(start_from(tmp_path))
    assert "save_file" in refusal.value.remedy


def test_several_files_without_a_usual_name_are_refused(tmp_path: Path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(ONE, tmp_path / name)
    with pytest.raises(RecipeInvalid, match=r"several files with weights: a\.safetensors, b\.safetensors"):
        locate_initial_weights(start_from(tmp_path))


def test_an_empty_folder_is_reported(tmp_path: Path):
    with pytest.raises(DataMissing, match="there are no weights of"):
        locate_initial_weights(start_from(tmp_path))


def test_tokens_and_classes_are_read_beside_the_weights(tmp_path: Path, tiny_bert: Path):
    save_file(ONE, tmp_path / "model.safetensors")
    assert locate_initial_weights(start_from(tmp_path, adapt=["vocabulary"])).source is None
    (tmp_path / "tokenizer.json").write_text((tiny_bert / "tokenizer.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "cold", "0": "warm", "10": "mild"}}))
    weights = locate_initial_weights(start_from(tmp_path, adapt=["vocabulary"]))
    names = read_names(weights.source)
    assert names.tokens[:5] == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert names.classes == ("warm", "cold", "mild")
    assert weights.identity() == {"digest": weights.digest, "source": weights.source.digest}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "warm"}}))
    assert find_source(str(tmp_path)).digest != weights.source.digest


def test_rows_of_a_head_are_named_by_classes_thresholds_or_label_and_class():
    def make_encoder(task: str, label: object, **fields: object) -> Encoder:
        inputs = [{"kind": "number", "columns": ["x"]}]
        features = Features.model_validate({"key": "id", "label": label, "task": task, "inputs": inputs})
        return Encoder.model_construct(features=features, fitted=(), **{"classes": (), "class_outputs": (), **fields})

    assert names_of_encoder(make_encoder("classification", "y", classes=(0, 1))).classes == ("0", "1")
    assert names_of_encoder(make_encoder("ordinal", "y", classes=(1, 2, 3))).classes == ("1 < 2", "2 < 3")
    outputs = (ClassOutput(name="colour", classes=("red", "blue")), ClassOutput(name="size", classes=(1, 2, 3)))
    encoder = make_encoder("classification", ["colour", "size"], class_outputs=outputs)
    expected = ("colour: red", "colour: blue", "", "size: 1", "size: 2", "size: 3")
    assert names_of_encoder(encoder).classes == expected


def test_texts_with_tokens_of_their_own_have_no_single_vocabulary():
    def fitted_text(*words: str) -> FittedText:
        tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
        return FittedText(kind="text", tokenizer=tokenizer.to_str(), num_tokens=len(words))

    inputs = [{"kind": "number", "columns": ["x"]}]
    features = Features.model_validate({"key": "id", "label": "y", "task": "regression", "inputs": inputs})
    title, body = fitted_text("[UNK]", "sun"), fitted_text("[UNK]", "rain")
    for fitted, tokens in (((title,), ("[UNK]", "sun")), ((title, title), ("[UNK]", "sun")), ((title, body), ())):
        encoder = Encoder.model_construct(features=features, fitted=fitted, classes=(), class_outputs=())
        assert names_of_encoder(encoder).tokens == tokens


def test_nothing_states_the_names_of_an_unknown_source():
    assert find_source("") is None
    assert read_names(None) == Names()
