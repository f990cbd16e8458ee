"""Recipes with inputs of different kinds: branches suit the parts of a row."""

from __future__ import annotations

import pytest

from tests.flows.recipe.recipe_problems import (
    COLOURED,
    IMPORTED,
    MLP,
    NUMBER,
    PHOTO,
    POINTS,
    TEXT,
    TREES,
    find_problems,
)

FUSED = {"kind": "fused"}
SOUND = {"kind": "audio", "column": "sound", "sample_rate": 100, "duration_s": 9, "num_mels": 1, "window_s": 0.1}


def fused(**branches: str) -> dict:
    return {"kind": "fused", "branches": {name: {"kind": kind} for name, kind in branches.items()}}


@pytest.mark.parametrize(
    "model",
    [
        FUSED,
        {"kind": "auto"},
        {"kind": "custom", "function": "mine:network"},
        fused(table="mlp", note="rnn", photo="resnet"),
        fused(table="ft_transformer", note="gpt", photo="cnn"),
    ],
)
def test_mixed_inputs_have_no_problems(model):
    assert find_problems(NUMBER, TEXT, COLOURED, model=model) == []


def test_a_column_that_may_be_null_can_be_absent():
    assert find_problems(NUMBER, {**SOUND, "missing": "absent"}, model=FUSED) == []
    (problem,) = find_problems(NUMBER, SOUND, model=FUSED)
    assert "column 'sound' is not required in the contract" in problem
    assert "set `missing: absent` beside other inputs" in problem


@pytest.mark.parametrize(
    ("inputs", "model", "sentence"),
    [
        ([NUMBER, TEXT], MLP, "kind mlp reads table columns or a sequence, but the inputs are inputs of different"),
        ([NUMBER, TEXT], TREES, "use fused"),
        ([NUMBER, TEXT], IMPORTED, "use fused"),
        ([NUMBER], FUSED, "kind fused reads inputs of different kinds, but an input of kind number is table columns"),
        ([NUMBER, TEXT], fused(table="mlp"), "model.branches.note: missing; name a network for this part"),
        (
            [NUMBER, TEXT],
            fused(table="mlp", note="rnn", photo="cnn"),
            "no part is named 'photo'; the parts are table, n",
        ),
        (
            [NUMBER, TEXT],
            fused(table="mlp", note="cnn"),
            "kind cnn reads an image or audio, but the part is text; use rnn",
        ),
        ([NUMBER, TEXT], fused(table="rnn", note="rnn"), "but the part is table columns; use mlp or ft_transformer"),
        (
            [NUMBER, COLOURED],
            fused(table="mlp", photo="rnn"),
            "model.branches.photo: a network of kind rnn reads an ima",
        ),
        (
            [TEXT, POINTS],
            {"kind": "fused", "branches": {"note": {"kind": "gpt"}, "photo": {"kind": "rnn", "relative": True}}},
            "model.branches.photo.relative: it predicts how a series goes on",
        ),
    ],
)
def test_problems_of_branches_are_named(inputs, model, sentence):
    assert any(sentence in problem for problem in find_problems(*inputs, model=model))


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"privacy": {"epsilon": 1, "delta": 1e-5}}, "training.privacy: the branches of a fused network normalise"),
        ({"augment": {"mixup": 0.2}}, "training.augment.mixup: parts that are missing, texts and categories cannot"),
        ({"augment": {"mask": 0.2}}, "training.augment.mask applies to audio, but an encoded row is inputs of differ"),
    ],
)
def test_training_options_that_do_not_suit_mixed_rows_are_refused(training, sentence):
    problems = find_problems(NUMBER, TEXT, PHOTO, model=FUSED, training=training)
    assert any(sentence in problem for problem in problems)


def test_a_pretrained_branch_needs_the_tokenizer_of_its_checkpoint():
    model = {
        "kind": "fused",
        "branches": {"table": {"kind": "mlp"}, "note": {"kind": "pretrained", "checkpoint": "mine"}},
    }
    (problem,) = find_problems(NUMBER, TEXT, model=model)
    assert "tokenizer byte_pairs numbers the tokens of column 'note' in another way than mine" in problem
    text = {"kind": "text", "column": "note", "length": 4, "tokenizer": "checkpoint", "missing": "absent"}
    assert find_problems(NUMBER, text, model=model) == []
    (problem,) = find_problems(NUMBER, text, model=fused(table="mlp", note="rnn"))
    assert "needs the tokenizer of a checkpoint, but a network of kind rnn has none" in problem


def test_a_fused_network_is_pruned_by_its_branches():
    candidates = [{"name": "fp32"}, {"name": "pruned", "prune": {"ratio": 0.5, "structures": ["heads"]}}]
    assert find_problems(NUMBER, TEXT, model=fused(table="mlp", note="gpt"), candidates=candidates) == []
    (problem,) = find_problems(NUMBER, TEXT, model=fused(table="mlp", note="rnn"), candidates=candidates)
    assert "no branch can be: table: a mlp has no heads to remove" in problem


def test_images_and_texts_of_mixed_rows_are_augmented():
    training = {"augment": {"flip": True, "drop_tokens": 0.1}}
    assert find_problems(NUMBER, TEXT, PHOTO, model=FUSED, training=training) == []
    inputs = [NUMBER, PHOTO, {**SOUND, "missing": "absent"}]
    (problem,) = find_problems(*inputs, model=FUSED, training={"augment": {"flip": True, "shift": 1}})
    assert "training.augment.flip applies to an image, but a row has an image and audio" in problem


IMPORTED_BRANCH = {
    "kind": "fused",
    "branches": {"table": {"kind": "imported", "path": "a.onnx"}, "photo": {"kind": "cnn"}},
}


@pytest.mark.parametrize(
    ("inputs", "model", "obstacle"),
    [
        ([NUMBER, TEXT], FUSED, "the tokens of column 'note'"),
        ([{"kind": "category", "columns": ["age"], "encoding": "index"}, PHOTO], FUSED, "category indices"),
        ([NUMBER, PHOTO], IMPORTED_BRANCH, "the imported branch table"),
    ],
)
def test_gradients_need_values_that_have_them(inputs, model, obstacle):
    explain = {"explain": {"method": "integrated_gradients"}}
    (problem,) = find_problems(*inputs, model=model, training=explain)
    assert f"mixed rows have no gradients for {obstacle}" in problem
    assert find_problems(NUMBER, PHOTO, model=FUSED, training=explain) == []


def test_trained_branches_are_no_students_and_have_no_other_formats():
    (problem,) = find_problems(NUMBER, PHOTO, model=IMPORTED_BRANCH, extra_formats=["pt2"])
    assert "an imported branch runs in ONNX Runtime only" in problem
    candidates = [{"name": "fp32"}, {"name": "small", "student": {"model": IMPORTED_BRANCH}}]
    (problem,) = find_problems(NUMBER, PHOTO, model=FUSED, candidates=candidates)
    assert "small has a student with a trained branch" in problem
