"""Options of the training name layers that the network has."""

from __future__ import annotations

import sys

import pytest

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
    assert find_problems(PHOTO, model=CNN, training={"freeze": "body", "lora": {}}) == []
