"""What does not work with sets of labels is refused when a recipe is read, with what to use instead."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.flows.recipe.consistency import find_inconsistencies
from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from tests.records import contract_document

CONTRACT = Contract.model_validate(
    contract_document(
        {"name": "id", "logicalType": "integer", "primaryKey": True},
        {"name": "x", "logicalType": "number", "required": True},
        {"name": "town", "logicalType": "string", "required": True},
        {"name": "tags", "logicalType": "array", "required": True, "items": {"logicalType": "string"}},
        {"name": "sizes", "logicalType": "array", "required": True, "items": {"logicalType": "number"}},
    )
)
NUMBER = {"kind": "number", "columns": ["x"]}


def problems(
    label: str = "tags",
    model: Any = "tabm",
    inputs: Any = (NUMBER,),
    training: dict[str, Any] | None = None,
    candidates: Any = None,
) -> list[str]:
    document = {"key": "id", "label": label, "task": "multilabel", "inputs": list(inputs)}
    return list(
        find_inconsistencies(
            Features.model_validate(document),
            TypeAdapter(Model).validate_python({"kind": model} if isinstance(model, str) else model),
            CONTRACT,
            Training.model_validate({"epochs": 1, **(training or {})}),
            Compression.model_validate({"candidates": candidates}),
        )
    )


@pytest.mark.parametrize("model", ["tabm", "mlp", "ft_transformer"])
def test_networks_of_tables_learn_sets_of_labels(model):
    students = [{"name": "fp32"}, {"name": "small", "student": {"model": {"kind": "mlp"}}}]
    assert problems(model=model, candidates=students) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "town"}, "is an array of strings or integers, but column 'town' is string; `data.lists` makes one"),
        ({"label": "sizes"}, "column 'sizes' has other elements"),
        ({"model": "tabular_ensemble"}, "its trees are fitted to one class per row; use tabm, mlp or ft_transformer"),
        ({"training": {"class_weights": "balanced"}}, "training.class_weights: rows have several labels"),
        ({"training": {"label_smoothing": 0.1}}, "training.label_smoothing: it moves probability between classes"),
        ({"inputs": [{"kind": "category", "columns": ["town"], "encoding": "target"}]}, "`encoding: target` needs one"),
        (
            {"training": {"search": {"space": {"training.label_smoothing": [0.0, 0.1]}}}},
            "training.label_smoothing has no effect on sets of labels",
        ),
    ],
)
def test_what_does_not_work_is_named_with_an_alternative(fields, message):
    (problem,) = problems(**fields)
    assert message in problem


def test_boosted_trees_and_private_training_are_refused():
    privacy = {"privacy": {"epsilon": 3, "delta": 0.001, "clip_norm": 1.0}}
    assert any("the private loss of sets of labels" in problem for problem in problems(model="mlp", training=privacy))
    (problem,) = [problem for problem in problems(model="boosted_trees") if problem.startswith("model:")]
    assert "boosted_trees does not predict sets of labels" in problem


def test_an_array_is_no_label_of_a_classification():
    features = Features.model_validate({"key": "id", "label": "tags", "inputs": [NUMBER]})
    (problem,) = find_inconsistencies(features, TypeAdapter(Model).validate_python({"kind": "mlp"}), CONTRACT)
    assert "column 'tags' is array; use `task: multilabel`" in problem
