"""Pretrained networks of architectures that no test compares with `transformers` are built when a recipe is checked."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from bloomery.flows.recipe.architecture_checks import check_readable
from bloomery.models.features.config import Features
from bloomery.models.networks.pretrained_config import Pretrained

TOKENS = {"kind": "text", "column": "note", "length": 9, "tokenizer": "checkpoint"}
PIXELS = {"kind": "image", "column": "photo", "shape": [3, 16, 16]}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}


def problems_of(source: dict[str, Any], **config: Any) -> list[str]:
    features = Features.model_validate({"key": "id", "label": "kind", "inputs": [source]})
    model = Pretrained.model_validate({"kind": "pretrained", "checkpoint": "mine", "config": config})
    return list(check_readable(features.inputs[0], model, "model.branches.text"))


@pytest.mark.parametrize(
    ("source", "config", "sentence"),
    [
        (
            TOKENS,
            {"model_type": "canine", **SMALL},
            "model.branches.text.checkpoint: the configuration of canine has no",
        ),
        (TOKENS, {"model_type": "mine"}, "transformers cannot read config.json of mine"),
        (
            PIXELS,
            {"model_type": "videomae", "image_size": 16, **SMALL},
            "videomae cannot read rows of shape [3, 16, 16]",
        ),
        (TOKENS, {"model_type": "fnet", "vocab_size": 9}, "computes other states for a row with padding"),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_rare_architectures_are_built_before_anything_runs(source, config, sentence):
    pytest.importorskip("transformers")
    (problem,) = problems_of(source, **config)
    assert sentence in problem


def test_architectures_that_can_be_built_have_no_problem(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    assert problems_of(TOKENS, model_type="rembert", vocab_size=9, **SMALL) == []
    assert problems_of(PIXELS, model_type="beit", image_size=16, patch_size=4, **SMALL) == []
    monkeypatch.setitem(sys.modules, "bloomery.models.networks.architectures.pretrained", None)
    assert problems_of(TOKENS, model_type="bert", vocab_size=9) == []  # is not built
