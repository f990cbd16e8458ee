"""Options of the training name layers that the network has."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bloomery.flows.recipe.layer_checks import check_layers
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Transformer
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Training
from tests.flows.recipe.recipe_problems import CNN, PHOTO, TEXT, find_problems

TRANSFORMER = {"kind": "transformer"}


@pytest.mark.parametrize(
    ("source", "model", "training", "sentence"),
    [
        (PHOTO, CNN, {"freeze": ["block"]}, "training.freeze: no parameter name begins with 'block'; required: `body`"),
        (PHOTO, CNN, {"freeze": 9}, "training.freeze: 9 layers are to be frozen, but the network has"),
        (PHOTO, CNN, {"freeze": ["blocks", "hidden", "head"]}, "training.freeze: every parameter is frozen"),
        (TEXT, TRANSFORMER, {"lora": {"targets": ["q_proj"]}}, "training.lora.targets: 'q_proj': no linear layer"),
        (TEXT, {"kind": "rnn"}, {"stages": [{"epochs": 1, "freeze": 5}]}, "training.freeze: 5 layers"),
    ],
)
def test_layers_that_do_not_exist_are_reported_before_anything_runs(source, model, training, sentence):
    (problem,) = find_problems(source, model=model, training=training)
    assert sentence in problem


@pytest.mark.parametrize(
    ("source", "model", "training"),
    [
        (PHOTO, CNN, {"freeze": ["blocks.0"]}),
        (PHOTO, {"kind": "resnet"}, {"freeze": 3}),
        (PHOTO, {"kind": "lenet"}, {"freeze": "first"}),  # refused for its small images elsewhere
        (TEXT, {"kind": "rnn"}, {"freeze": "steps"}),
        (TEXT, TRANSFORMER, {"lora": {"targets": ["query", "blocks.1.up"]}, "freeze": 1}),
        (TEXT, {"kind": "gpt"}, {"freeze": ["decoder.blocks.0"]}),
        ({"kind": "number", "columns": ["age"]}, {"kind": "mlp"}, {"freeze": "unknown until the rows are encoded"}),
    ],
)
def test_layers_that_exist_have_no_problems(source, model, training):
    assert find_problems(source, model=model, training=training) == []


def test_groups_of_layers_are_not_looked_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bloomery.models.networks.blueprint", None)
    assert find_problems(PHOTO, model=CNN, training={"freeze": "body"}) == []
    assert find_problems(PHOTO, model=CNN, training={"lora": {}}) == []


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"freeze": "body", "lora": {}}, "training.lora: all 1 adapters are frozen, so that only the head would learn"),
        ({"freeze": "hidden", "lora": {"targets": "hidden"}}, "training.lora: all 1 adapters are frozen"),
        ({"start_from": {"network": "digits:3", "adapt": ["vocabulary"]}}, "`vocabulary` takes rows of equal tokens"),
    ],
)
def test_options_without_an_effect_are_reported(training, sentence):
    (problem,) = find_problems(PHOTO, model=CNN, training=training)
    assert sentence in problem


def test_adapters_may_be_frozen_in_one_stage_and_learn_in_another():
    stages = [{"epochs": 1, "freeze": "body"}, {"epochs": 1}]
    assert find_problems(PHOTO, model=CNN, training={"lora": {}, "stages": stages}) == []


@pytest.mark.parametrize(
    ("task", "label", "noun"), [("regression", "amount", "numbers"), ("embedding", "text", "vectors")]
)
def test_rows_of_classes_are_not_taken_where_there_are_none(task, label, noun):
    features = Features.model_validate({"key": "id", "label": label, "task": task, "inputs": [TEXT]})
    training = Training(epochs=1, start_from={"network": "digits:3", "adapt": ["outputs"]})
    (problem,) = check_layers(features, Transformer(kind="transformer"), training)
    assert f"but {noun} have none; leave it out" in problem


def test_the_body_of_a_checkpoint_that_gives_vectors_is_all_of_it(tiny_bert: Path):
    features = Features.model_validate({"key": "id", "label": "text", "task": "embedding", "inputs": [TEXT]})
    document = json.loads((tiny_bert / "config.json").read_text())
    model = Pretrained(kind="pretrained", checkpoint="tiny", config=document)
    (problem,) = check_layers(features, model, Training(epochs=1, freeze="body"))
    assert "training.freeze: the network has no head, so `body` is all of it" in problem
    assert list(check_layers(features, model, Training(epochs=1, freeze=1))) == []
