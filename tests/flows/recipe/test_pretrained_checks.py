"""A pretrained network must read the encoded rows: known from its config.json, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from bloomery.flows.recipe.pretrained_checks import check_checkpoint_inputs, check_pretrained
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Fused, Mlp, Rnn
from bloomery.models.networks.pretrained_config import Pretrained

TEXT = {"kind": "text", "column": "text", "length": 64, "tokenizer": "checkpoint"}
IMAGE = {"kind": "image", "column": "photo", "shape": [3, 8, 8]}
BERT = {"model_type": "bert", "vocab_size": 100, "max_position_embeddings": 64}


def find_problems(config: dict[str, Any] | None, source: dict[str, Any], pooling: str = "auto") -> list[str]:
    features = Features.model_validate({"key": "id", "label": "kind", "inputs": [source]})
    model = {"kind": "pretrained", "checkpoint": "mine", "config": config, "pooling": pooling}
    return list(check_pretrained(features.inputs[0], Pretrained.model_validate(model)))


@pytest.mark.parametrize(
    "config", [BERT, {"model_type": "gpt2", "n_positions": 64}, {"model_type": "xlnet", "vocab_size": 9}, None], ids=str
)
def test_a_network_for_texts_of_that_length_has_no_problem(config):
    assert find_problems(config, TEXT) == []


VIT = {"model_type": "vit", "image_size": 8, "num_channels": 3}
LARGER = [{**VIT, "model_type": name, "image_size": 518} for name in ("dinov2", "dinov2_with_registers")]
RESNET = {"model_type": "resnet", "depths": [1], "num_channels": 3}


@pytest.mark.parametrize(
    ("config", "source", "pooling", "sentence"),
    [
        (VIT, {**IMAGE, "resize": [9, 8]}, "auto", "reads 8 x 8 pixels, but an encoded image has 9 x 8; set `prep"),
        (VIT, {**IMAGE, "shape": [1, 8, 8]}, "auto", "reads 3 channels, but an encoded image has 1; set `prep"),
        (VIT, IMAGE, "last", "vit has no last token"),
        (RESNET, IMAGE, "cls", "resnet has no first token"),
    ],
    ids=str,
)  # fmt: skip
def test_images_of_other_sizes_and_other_poolings_are_reported(config, source, pooling, sentence):
    (problem,) = find_problems(config, source, pooling)
    assert sentence in problem


@pytest.mark.parametrize("config", [VIT, RESNET, *LARGER], ids=str)
def test_images_that_fit_have_no_problem(config):
    assert find_problems(config, IMAGE) == []


@pytest.mark.parametrize(
    ("config", "source", "sentence"),
    [
        (BERT, {**TEXT, "length": 65}, "a bert, which has 64 positions, but `length` of the text is 65; lower it"),
        ({**BERT, "model_type": "roberta", "pad_token_id": 1}, TEXT, "which has 62 positions"),
        ({"model_type": "gpt2", "n_positions": 63}, TEXT, "which has 63 positions"),
        ({"model_type": "t5", "vocab_size": 9, "is_encoder_decoder": True}, TEXT, "an encoder and a decoder"),
        ({"model_type": "vit", "image_size": 8}, TEXT, "reads image, but an input of kind text is not"),
        ({"model_type": "wav2vec2", "conv_dim": [8], "vocab_size": 9}, TEXT, "reads audio"),
        (BERT, IMAGE, "reads text, but an input of kind image is not"),
        ({"model_type": "clip", "text_config": {}, "vision_config": {}}, TEXT, "consists of several networks"),
        ({"model_type": "fnet", "vocab_size": 9}, TEXT, "computes other states for a row with padding"),
        ({"model_type": "convbert", "vocab_size": 9}, TEXT, "computes other states for a row with padding"),
        ({"model_type": "vit_mae", "image_size": 8}, IMAGE, "leaves out random parts of each row"),
    ],
    ids=str,
)  # fmt: skip
def test_a_network_that_does_not_fit_is_reported(config, source, sentence):
    (problem,) = find_problems(config, source)
    assert sentence in problem


@pytest.mark.parametrize(
    ("model", "num_problems"),
    [
        (Mlp(kind="mlp"), 1),
        (Pretrained(kind="pretrained", checkpoint="mine"), 0),
        (Fused(kind="fused"), 1),
        (Fused(kind="fused", branches={"text": Rnn(kind="rnn")}), 1),
    ],
)
def test_only_a_pretrained_network_has_a_tokenizer(model, num_problems):
    numbers = {"kind": "number", "columns": ["n"]}
    features = Features.model_validate({"key": "id", "label": "kind", "inputs": [numbers, TEXT]})
    problems = list(check_checkpoint_inputs(features, model))
    assert len(problems) == num_problems
    assert all("needs the tokenizer of a checkpoint" in problem for problem in problems)


def test_a_pretrained_network_reads_no_tokens_that_were_learnt_here():
    (problem,) = find_problems(BERT, {"kind": "text", "column": "text", "length": 64, "vocabulary_size": 300})
    assert "set `tokenizer: checkpoint`" in problem
