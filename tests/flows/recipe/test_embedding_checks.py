"""What does not work with vectors is refused when a recipe is read, with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.scores import Score
from bloomery.flows.recipe.consistency import find_inconsistencies
from bloomery.flows.recipe.fine_tuning import find_loops, inherit_options
from bloomery.flows.recipe.limit_checks import find_misplaced_limits
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.config import Compression
from bloomery.models.evaluation.gates import Gates
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from tests.records import contract_document

CONTRACT = Contract.model_validate(
    contract_document(
        {"name": "id", "logicalType": "integer", "primaryKey": True},
        {"name": "query", "logicalType": "string", "required": True},
        {"name": "answer", "logicalType": "string", "required": True},
        {"name": "count", "logicalType": "integer", "required": True},
    )
)
TEXT = {"kind": "text", "column": "query", "length": 8, "vocabulary_size": 300}


def problems(
    task: str = "embedding",
    label: str = "answer",
    model: Any = None,
    training: dict[str, Any] | None = None,
    candidates: Any = None,
    **compression: Any,
) -> list[str]:
    network = {"kind": "transformer", "width": 32} if model is None else model
    return list(
        find_inconsistencies(
            Features.model_validate({"key": "id", "label": label, "task": task, "inputs": [TEXT]}),
            TypeAdapter(Model).validate_python(network),
            CONTRACT,
            Training.model_validate({"epochs": 1, **(training or {})}),
            Compression.model_validate({"candidates": candidates, **compression}),
        )
    )


def test_vectors_may_be_short_and_of_integers():
    candidates = [{"name": "fp32"}, {"name": "small", "quantize": "dynamic", "dimensions": 8, "vectors": "int8"}]
    training = {"matryoshka": [8, 16], "temperature": 0.02}
    assert problems(candidates=candidates, training=training) == []


def test_a_checkpoint_may_be_taken_as_it_is_and_other_networks_are_trained():
    pretrained = {"kind": "pretrained", "checkpoint": "tiny", "config": {"hidden_size": 16}}
    no_epochs = {"training": {"epochs": 0}}
    assert not [problem for problem in problems(model=pretrained, **no_epochs) if problem.startswith("training")]
    assert any("training.epochs: found 0" in problem for problem in problems(**no_epochs))
    (problem,) = (item for item in problems(model={**pretrained, "config": {}}) if "hidden_size" in item)
    assert "config.json of tiny states no hidden_size" in problem


def test_modules_after_the_pooling_are_refused(tmp_path: Path):
    names = ["Transformer", "Pooling", "Dense"]
    modules = [{"path": "", "type": f"sentence_transformers.models.{name}"} for name in names]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    resolved = {"reference": "labse", "folder": str(tmp_path), "files": {}}
    model = {"kind": "pretrained", "checkpoint": "labse", "config": {"hidden_size": 16}, "resolved": resolved}
    (problem,) = (item for item in problems(model=model) if "sentence-transformers" in item)
    assert "computes the vectors of labse with Dense after the pooling" in problem
    (tmp_path / "modules.json").write_text(json.dumps(modules[:2]))
    assert not [item for item in problems(model=model) if "sentence-transformers" in item]


def test_texts_that_a_checkpoint_changes_before_its_tokenizer_are_refused(tiny_roberta: Path, tmp_path: Path):
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    (tmp_path / "tokenizer.json").write_bytes((tiny_roberta / "tokenizer.json").read_bytes())
    resolved = {"reference": "e5", "folder": str(tmp_path), "files": {}}
    model = {"kind": "pretrained", "checkpoint": "e5", "config": {"hidden_size": 16}, "resolved": resolved}
    prompt, case = (item for item in problems(model=model) if "sentence-transformers" in item)
    assert "model: sentence-transformers puts 'query: ' before each text for e5" in prompt
    assert "lowers the case of each text for e5" in case
    assert f"a copy of {tmp_path} without do_lower_case" in case


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "count"}, "the label of an embedding is a text"),
        (
            {"model": {"kind": "mlp"}},
            "a network of kind mlp computes no vectors of texts; use pretrained, rnn, transformer, gpt",
        ),
        ({"training": {"class_weights": "balanced"}}, "training.class_weights: texts belong to no class"),
        ({"training": {"label_smoothing": 0.1}}, "training.label_smoothing: texts belong to no class"),
        ({"training": {"slices": ["count"]}}, "training.slices: the positives of a slice"),
        ({"training": {"explain": {"rows": 2}}}, "training.explain: the values of a vector have no meaning"),
        ({"training": {"search": {"trials": 3}}}, "training.search: "),
        ({"training": {"loss": "huber"}}, "training.loss: huber is for a regression; vectors have a contrastive loss"),
        ({"training": {"matryoshka": [8, 32]}}, "training.matryoshka: 32 is not shorter than the vectors"),
        ({"search": True}, "compression.search: a search for vectors"),
        ({"extra_formats": ["pt2"]}, "compression.extra_formats: a pt2 file"),
        (
            {"candidates": [{"name": "fp32"}, {"name": "long", "dimensions": 32}]},
            "long: `dimensions` is 32, and vectors have 32 values",
        ),
        (
            {"candidates": [{"name": "fp32"}, {"name": "part", "quantize": "dynamic", "float_layers": 0.1}]},
            "part: `float_layers` needs an error rate",
        ),
        ({"task": "classification", "training": {"temperature": 0.1}}, "training.temperature: it is an option of"),
        (
            {"task": "classification", "fine_tune": {"epochs": 1, "matryoshka": [4]}},
            "compression.fine_tune.matryoshka: it is an option of",
        ),
        (
            {"task": "classification", "candidates": [{"name": "fp32"}, {"name": "short", "dimensions": 2}]},
            "dimensions of short is an option of `task: embedding`",
        ),
    ],
)
def test_what_does_not_work_is_named_with_a_reason(fields, message):
    messages = problems(**fields)
    assert any(message in problem for problem in messages), messages


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"gates": Gates(min_accuracy=0.5)}, "of a classification, not an embedding: use gates.min_score"),
        ({"budget": Budget(class_drop=0.1)}, "use budget.accuracy_drop"),
        ({"gates": Gates(max_error=0.5)}, "use gates.min_score"),
        ({"score": Score(name="accuracy")}, "use one of ndcg_at_10, recall_at_1, recall_at_5, recall_at_10"),
    ],
)
def test_limits_of_other_tasks_are_refused(limits, message):
    options = {"budget": Budget(), "gates": Gates(), **limits}
    (problem,) = find_misplaced_limits("embedding", options["budget"], options["gates"], (), options.get("score"))
    assert message in problem


def test_fine_tuning_inherits_what_the_vectors_were_trained_for():
    student, own = {"model": {"kind": "rnn"}, "training": {"epochs": 2}}, {"epochs": 3, "temperature": 0.2}
    document = {
        "candidates": [
            {"name": "fp32"},
            {"name": "small", "student": student, "prune": {"ratio": 0.5, "training": own}},
            {"name": "half", "prune": 0.5},
        ]
    }
    compression = Compression.model_validate(document)
    training = Training(epochs=1, temperature=0.1, matryoshka=(8,))
    loops = find_loops(inherit_options(compression, training))
    assert {place: (loop.epochs, loop.temperature, loop.matryoshka) for place, loop in loops.items()} == {
        "compression.fine_tune": (10, 0.1, (8,)),
        "compression.candidates: student.training of small": (2, 0.1, (8,)),
        "compression.candidates: prune.training of small": (3, 0.2, (8,)),
    }
    assert inherit_options(compression, Training(epochs=1)) == compression


def test_fine_tuning_inherits_the_loss_and_the_weights_of_classes():
    student = {"model": {"kind": "rnn"}, "training": {"epochs": 2, "class_weights": "none", "loss": "squared"}}
    compression = Compression.model_validate({"candidates": [{"name": "fp32"}, {"name": "small", "student": student}]})
    for option in ({"class_weights": "balanced"}, {"loss": "huber"}):
        inherited = inherit_options(compression, Training(epochs=1, **option))
        assert inherited.fine_tune == compression.fine_tune.model_copy(update=option)
        assert inherited.candidates == compression.candidates  # which state the defaults


def test_options_of_embeddings_are_not_written_for_other_recipes():
    # They would change the keys of all stages.
    assert not {"temperature", "matryoshka"} & set(Training(epochs=1).model_dump())
    (spec,) = Compression.model_validate({"candidates": [{"name": "fp32"}]}).candidates or ()
    assert not {"dimensions", "vectors"} & set(spec.model_dump())
    assert "vector_bytes" not in Budget().model_dump()
    assert Training(epochs=1, temperature=0.1).model_dump()["temperature"] == 0.1
