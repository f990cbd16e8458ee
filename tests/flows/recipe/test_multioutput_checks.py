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
        ({"model": "boosted_trees"}, "does not predict several numbers, since its trees are fitted to one number"),
        ({"model": "tabular_ensemble"}, "use tabm, mlp or ft_transformer"),
        ({"labels": ("width", "town")}, "targets are numbers, but column 'town' is string"),
        ({"labels": ("width", "depth")}, "has no column 'depth'"),
        (
            {"inputs": [{"kind": "category", "columns": ["town"], "encoding": "target"}]},
            "`encoding: target` needs one label per row",
        ),
        ({"training": {"explain": {}}}, "/explain?label=NAME"),
        ({"training": {"class_weights": "balanced"}}, "a regression has no classes"),
        ({"training": {"strategy": "pipeline", "devices": 2}}, "use ddp, fsdp or tensor"),
        ({"candidates": STUDENT}, "the student of small: boosted_trees does not predict several numbers"),
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
