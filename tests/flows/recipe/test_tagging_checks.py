"""What does not work with tags of words is refused when a recipe is read, with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.scores import Score
from bloomery.flows.recipe.consistency import find_inconsistencies
from bloomery.flows.recipe.limit_checks import find_misplaced_limits
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.config import Compression
from bloomery.models.evaluation.gates import Gates
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from tests.records import contract_document

TEXT = {"kind": "text", "column": "words", "length": 8, "vocabulary_size": 300}
RULE = 'LENGTH(words) = LENGTH("tags")'


def array(name: str, kind: str = "string", *, required: bool = True, items_required: bool = True) -> dict[str, Any]:
    items = {"logicalType": kind, "required": items_required}
    return {"name": name, "logicalType": "array", "required": required, "items": items}


def make_contract(*columns: dict[str, Any], rule: str | None = RULE, severity: str = "error") -> Contract:
    names = {column["name"] for column in columns}
    defaults = [column for column in (array("words"), array("tags")) if column["name"] not in names]
    document = contract_document(
        {"name": "id", "logicalType": "integer", "primaryKey": True},
        {"name": "text", "logicalType": "string", "required": True},
        *columns,
        *defaults,
    )
    implementation = {"rule": "expression", "expression": rule}
    if rule is not None:
        document["schema"][0]["quality"] = [
            {"type": "custom", "engine": "bloomery", "severity": severity, "implementation": implementation}
        ]
    return Contract.model_validate(document)


def problems(
    *columns: dict[str, Any],
    source: dict[str, Any] | None = None,
    label: str = "tags",
    model: Any = None,
    training: dict[str, Any] | None = None,
    rule: str | None = RULE,
    severity: str = "error",
    **compression: Any,
) -> list[str]:
    inputs = [{**TEXT, **(source or {})}]
    return list(
        find_inconsistencies(
            Features.model_validate({"key": "id", "label": label, "task": "tagging", "inputs": inputs}),
            TypeAdapter(Model).validate_python(model or {"kind": "rnn"}),
            make_contract(*columns, rule=rule, severity=severity),
            Training.model_validate({"epochs": 1, **(training or {})}),
            Compression.model_validate(compression),
        )
    )


@pytest.mark.parametrize(
    "model",
    [{"kind": "rnn", "bidirectional": True}, {"kind": "transformer", "width": 32}],
)
def test_networks_with_an_output_for_each_word_are_accepted(model):
    training = {"class_weights": "balanced", "label_smoothing": 0.1, "lora": {"rank": 2}}
    candidates = [
        {"name": "fp32"},
        {"name": "int8", "quantize": "dynamic"},
        {"name": "s", "student": {"model": {"kind": "rnn"}}},
    ]
    assert problems(model=model, training=training, candidates=candidates, distill={"weight": 0.5}) == []
    assert problems(array("tags", "integer"), model=model) == []


def test_the_pooling_of_a_resolved_checkpoint_is_not_that_of_the_recipe():
    checkpoint = {"reference": "tiny", "folder": "/tiny", "files": {"model.safetensors": "0" * 64}}
    resolved = {"kind": "pretrained", "checkpoint": "tiny", "pooling": "mean", "resolved": checkpoint}
    assert not any("pooling" in problem for problem in problems(model=resolved))
    assert any("pooling" in problem for problem in problems(model={**resolved, "resolved": None}))


@pytest.mark.parametrize(
    "rule",
    [
        "length(tags) = length(words)",
        "(LENGTH(words) = LENGTH(tags)) AND id > 0",
        "id > 0 AND (id < 9 AND LENGTH(words) = LENGTH(tags))",
    ],
)
def test_the_rule_may_be_written_in_several_ways(rule):
    assert problems(rule=rule) == []


@pytest.mark.parametrize(
    "options",
    [
        {"rule": None},
        {"rule": "LENGTH(words) = LENGTH(words)"},
        {"rule": "LENGTH(words) >= LENGTH(tags)"},
        {"rule": "LENGTH(words) = LENGTH(tags) OR id > 3"},
        {"severity": "warning"},
    ],
)
def test_a_contract_must_say_that_each_word_has_a_tag(options):
    (problem,) = problems(**options)
    assert "does not say that each word has a tag; add to its `quality`" in problem
    assert """expression: 'LENGTH("words") = LENGTH("tags")'""" in problem


@pytest.mark.parametrize(
    ("columns", "options", "problem"),
    [
        (
            (),
            {"source": {"column": "text"}, "rule": "LENGTH(text) = LENGTH(tags)"},
            "column 'text' is string; `data.lists`",
        ),
        ((array("words", "integer"),), {}, "column 'words' is an array of integer"),
        ((array("words", required=False),), {}, "sentences may be missing; require it"),
        ((array("words", items_required=False),), {}, "null elements, which are no words"),
        ((array("tags", items_required=False),), {}, "null elements, which are no tags"),
        ((array("tags", required=False),), {}, "column 'tags' is not required"),
        ((array("tags", "number"),), {}, "column 'tags' has other elements"),
        (
            (),
            {"label": "text", "rule": "LENGTH(words) = LENGTH(text)"},
            "the tags of words are an array of strings or in",
        ),
        ((), {"model": {"kind": "gpt"}}, "a network of kind gpt has no output for each word; use pretrained, tra"),
        ((), {"model": {"kind": "transformer", "wide": True}}, "model.wide: it adds up the tokens"),
        ((), {"model": {"kind": "rnn", "highway": 2}}, "model.highway: it maps the last steps"),
        ((), {"model": {"kind": "rnn", "pooling": "mean"}}, "model.pooling: each word has its own output"),
        ((), {"training": {"privacy": {"epsilon": 3, "delta": 1e-5}}}, "training.privacy: private training of tags"),
        ((), {"training": {"augment": {"drop_tokens": 0.1}}}, "training.augment.drop_tokens: it moves tokens away"),
        ((), {"training": {"explain": {}}}, "training.explain: a sentence has a tag for each word"),
        ((), {"training": {"strategy": "pipeline"}}, "training.strategy: the stages of a pipeline"),
        ((), {"extra_formats": ["litert"]}, "compression.extra_formats: a litert file of tags"),
        (
            (),
            {"candidates": [{"name": "fp32"}, {"name": "s", "student": {"model": {"kind": "gpt"}}}]},
            "the student of s: a network of kind gpt has no",
        ),
    ],
)
def test_what_does_not_work_with_tags_is_refused(columns, options, problem):
    assert problem in "\n".join(problems(*columns, **options))


def test_limits_belong_to_the_task():
    assert list(find_misplaced_limits("tagging", Budget(), Gates(min_score=0.8), (), Score(name="entity_f1"))) == []
    assert list(find_misplaced_limits("tagging", Budget(accuracy_drop=0.01), Gates())) == []
    (problem,) = find_misplaced_limits("tagging", Budget(), Gates(min_accuracy=0.8))
    assert "use gates.min_score" in problem
    (problem,) = find_misplaced_limits("tagging", Budget(), Gates(), (), Score(name="macro_f1"))
    assert "use one of tag_accuracy, entity_f1, entity_precision, entity_recall" in problem
    (problem,) = find_misplaced_limits("classification", Budget(), Gates(), (), Score(name="entity_f1"))
    assert "entity F1 is a score of a tagging task, not a classification" in problem
