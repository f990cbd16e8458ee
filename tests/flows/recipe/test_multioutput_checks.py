"""What does not work with several outputs is refused when a recipe is read, with what to use instead."""

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

CONTRACT = Contract.model_validate(
    contract_document(
        {"name": "id", "logicalType": "integer", "primaryKey": True},
        {"name": "x", "logicalType": "number", "required": True},
        {"name": "town", "logicalType": "string", "required": True},
        {"name": "width", "logicalType": "number", "required": True},
        {"name": "height", "logicalType": "number"},
    )
)
NUMBER = {"kind": "number", "columns": ["x"]}


def problems(
    labels: tuple[str, ...] = ("width", "height"),
    model: Any = "tabm",
    inputs: Any = (NUMBER,),
    training: dict[str, Any] | None = None,
    candidates: Any = None,
) -> list[str]:
    document = {"key": "id", "label": list(labels), "task": "regression", "inputs": list(inputs)}
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
def test_networks_of_tables_predict_several_numbers_some_of_which_may_be_null(model: str) -> None:
    assert not problems(model=model)


STUDENT = [{"name": "fp32"}, {"name": "small", "student": {"model": {"kind": "boosted_trees"}}}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "boosted_trees"}, "does not predict several labels, since its trees are fitted to one label"),
        ({"model": "tabular_ensemble"}, "use tabm, mlp or ft_transformer"),
        (
            {"labels": ("width", "town")},
            "all numbers or all classes, but width is number, town is string",
        ),
        ({"labels": ("width", "depth")}, "has no column 'depth'"),
        (
            {"inputs": [{"kind": "category", "columns": ["town"], "encoding": "target"}]},
            "`encoding: target` needs one label per row",
        ),
        ({"training": {"explain": {}}}, "/explain?label=NAME"),
        ({"training": {"class_weights": "balanced"}}, "a regression has no classes"),
        ({"training": {"strategy": "pipeline", "devices": 2}}, "use ddp, fsdp or tensor"),
        ({"candidates": STUDENT}, "the student of small: boosted_trees does not predict several labels"),
    ],
)
def test_what_does_not_work_is_named_with_what_does(values: dict[str, Any], message: str) -> None:
    assert any(message in problem for problem in problems(**values))


def test_limits_are_those_of_errors() -> None:
    def find(score: str | None, budget: dict[str, Any], gates: dict[str, Any]) -> list[str]:
        limits = Budget.model_validate(budget), Gates.model_validate(gates)
        stated_score = None if score is None else Score.model_validate({"name": score})
        return list(find_misplaced_limits("multioutput", *limits, score=stated_score))

    assert not find(None, {"error_rise": 0.02}, {"max_error": 0.5})
    assert not find("mean_r2", {"accuracy_drop": 0.02}, {"min_score": 0.5})
    assert "budget.error_rise" in find(None, {"accuracy_drop": 0.01}, {})[0]
    (problem,) = find("rmse", {}, {})
    assert "use one of mean_rmse, mean_mae, mean_r2" in problem


def test_several_labels_with_classes_have_options_and_limits_of_their_own() -> None:
    features = {"key": "id", "label": ["town", "width"], "task": "classification", "inputs": [NUMBER]}
    model = TypeAdapter(Model).validate_python({"kind": "mlp"})
    training = Training.model_validate({"epochs": 1, "class_weights": "balanced", "label_smoothing": 0.1})
    messages = list(find_inconsistencies(Features.model_validate(features), model, CONTRACT, training))
    assert any("all numbers or all classes, but town is string, width is number" in problem for problem in messages)
    assert any("training.label_smoothing: it is for the classes of one label" in problem for problem in messages)
    assert not any("class_weights" in problem for problem in messages)
    gates = Gates.model_validate({"min_accuracy": 0.5})
    (problem,) = find_misplaced_limits("multitask", Budget(), gates)
    assert "use gates.min_score" in problem
