"""The order of classes is compared with the contract when a recipe is read."""

from __future__ import annotations

from typing import Any

import pytest

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.scores import Score
from bloomery.flows.recipe.consistency import find_inconsistencies
from bloomery.flows.recipe.limit_checks import find_misplaced_limits
from bloomery.models.compression.budget import Budget
from bloomery.models.evaluation.gates import Gates
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Mlp
from bloomery.models.training.config import Training
from tests.records import contract_document

CONTRACT = Contract.model_validate(
    contract_document(
        {"name": "id", "logicalType": "integer", "primaryKey": True},
        {"name": "x", "logicalType": "number", "required": True},
        {"name": "size", "logicalType": "number", "required": True},
        {"name": "stars", "logicalType": "integer", "required": True},
        {"name": "is_good", "logicalType": "boolean", "required": True},
        {
            "name": "risk",
            "logicalType": "string",
            "required": True,
            "quality": [
                {"metric": "invalidValues", "arguments": {"validValues": ["high", "low", "medium"]}, "mustBe": 0}
            ],
        },
    )
)
ORDER = ["low", "medium", "high"]


def problems(label: str, training: dict[str, Any] | None = None, **values: Any) -> list[str]:
    document = {
        "key": "id",
        "label": label,
        "task": "ordinal",
        "inputs": [{"kind": "number", "columns": ["x"]}],
        **values,
    }
    features = Features.model_validate(document)
    options = Training.model_validate({"epochs": 1, **(training or {})})
    return list(find_inconsistencies(features, Mlp(kind="mlp"), CONTRACT, options))


def test_complete_orders_and_integers_are_fine():
    assert not problems("risk", order=ORDER)
    assert not problems("stars")
    assert not problems("stars", order=[5, 4, 3])


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        ("risk", {}, "features.order: missing; texts of column 'risk' have no order"),
        ("risk", {"order": ["low", "high"]}, "misses classes that are valid values of column 'risk': medium"),
        ("risk", {"order": [*ORDER, "extreme"]}, "names classes that are no valid values of column 'risk': extreme"),
        ("risk", {"order": [1, 2, 3]}, "column 'risk' is string, but the order has 1, 2, 3; write them in quotes"),
        ("stars", {"order": ["1", "2"]}, "write them without quotes"),
        ("is_good", {}, "classes with an order are integers or strings, but column 'is_good' is boolean"),
        ("size", {}, "column 'size' is number; use `task: regression`"),
        ("stars", {"training": {"strategy": "pipeline", "devices": 2}}, "use ddp, fsdp or tensor"),
    ],
)
def test_contradictions_are_named_before_a_row_is_read(label: str, values: dict[str, Any], message: str):
    assert any(message in problem for problem in problems(label, **values))


def find_limits(score: str | None, budget: dict[str, Any], gates: dict[str, Any]) -> list[str]:
    limits = Budget.model_validate(budget), Gates.model_validate(gates)
    return list(
        find_misplaced_limits(
            "ordinal", *limits, score=None if score is None else Score.model_validate({"name": score})
        )
    )


def test_scores_of_classes_and_of_ranks_have_their_limits():
    assert not find_limits("quadratic_kappa", {"accuracy_drop": 0.01}, {"min_score": 0.6})
    assert not find_limits("rank_mae", {"error_rise": 0.02}, {"max_error": 0.5})
    assert not find_limits("macro_f1", {"class_drop": 0.1}, {})
    assert not find_limits(None, {"accuracy_drop": 0.01}, {"min_accuracy": 0.5})
    (problem,) = find_limits("rmse", {}, {})
    assert "score of a regression, not an ordinal task: use one of" in problem
    assert "quadratic_kappa" in problem
    assert "budget.error_rise" in find_limits("rank_mae", {"accuracy_drop": 0.01}, {})[0]
