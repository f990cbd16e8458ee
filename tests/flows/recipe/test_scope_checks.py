"""Options of training that need a class out of scope, or rows with padding, are refused elsewhere."""

from __future__ import annotations

import pytest

from bloomery.flows.recipe.scope_checks import check_scope_students
from bloomery.models.compression.config import Compression
from bloomery.models.training.config import Training
from tests.flows.recipe.recipe_problems import CNN, GPT, MLP, NUMBER, PHOTO, POINTS, RNN, TEXT, find_problems

SCOPE = {"out_of_scope": {"label": "other"}}
BUCKETS = {"length_bucketing": True}


@pytest.mark.parametrize(
    ("source", "model", "options"), [(TEXT, GPT, SCOPE), (TEXT, GPT, BUCKETS), (POINTS, RNN, BUCKETS)], ids=str
)
def test_they_suit_texts_and_padded_sequences(source, model, options):
    assert find_problems(source, model=model, training=options) == []


@pytest.mark.parametrize(
    ("source", "model", "options", "sentence"),
    [
        (NUMBER, {"kind": "tabm"}, SCOPE, "training.out_of_scope: a tabm has no linear head"),
        (NUMBER, MLP, BUCKETS, "training.length_bucketing: it sorts texts and padded sequences by length, but"),
        (PHOTO, CNN, BUCKETS, "but an encoded row is an image"),
        (TEXT, GPT, {**BUCKETS, "privacy": {"epsilon": 3, "delta": 1e-5}}, "length_bucketing is not supported"),
    ],
    ids=str,
)  # fmt: skip
def test_elsewhere_they_are_refused(source, model, options, sentence):
    (problem,) = find_problems(source, model=model, training=options)
    assert sentence in problem


def test_the_network_of_a_candidate_needs_a_head():
    training = Training.model_validate({"epochs": 1, **SCOPE})
    students = [{"kind": "tabm"}, {"kind": "mlp"}]
    candidates = [{"name": kind["kind"], "student": {"model": kind}} for kind in students]
    compression = Compression.model_validate(
        {"candidates": [{"name": "fp32"}, *candidates], "fine_tune": {"epochs": 1}, "distill": {}}
    )
    (problem,) = check_scope_students(training, compression)
    assert "the student of tabm is a tabm without a linear head" in problem
    assert list(check_scope_students(training.model_copy(update={"out_of_scope": None}), compression)) == []


def test_a_regression_has_no_class_out_of_scope():
    problems = find_problems(NUMBER, label="price", task="regression", training=SCOPE)
    assert problems == ["training.out_of_scope: it is a class, but the task is regression; leave it out"]
