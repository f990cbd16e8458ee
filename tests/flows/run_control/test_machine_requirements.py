"""Packages that only some recipes need are missed before anything is computed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from pydantic import TypeAdapter

from bloomery.data_contracts.errors import EngineMissing
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.flows.run_control.machine_requirements import check_machine_requirements
from bloomery.models.compression.config import Compression
from bloomery.models.networks.config import Model

BERT = {"kind": "pretrained", "checkpoint": "mine"}


def recipe_of(model: dict[str, Any], student: dict[str, Any] | None = None) -> Recipe:
    changes: dict[str, Any] = {"model": TypeAdapter(Model).validate_python(model)}
    if student is not None:
        candidates = [{"name": "fp32"}, {"name": "small", "student": {"model": student}}]
        changes["compression"] = Compression.model_validate({"candidates": candidates})
    return read_recipe("digits").model_copy(update=changes)


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else original(name))


@pytest.mark.parametrize(
    ("model", "student"),
    [(BERT, None), ({"kind": "huggingface", "config": {"model_type": "vit"}}, None), ({"kind": "cnn"}, BERT)],
    ids=["network", "configuration", "student"],
)
def test_transformers_is_missed_before_a_run(model, student, without_transformers):
    with pytest.raises(EngineMissing, match="transformers is not installed") as caught:
        check_machine_requirements(recipe_of(model, student))
    assert "bloomery[huggingface]" in caught.value.remedy


def test_other_recipes_need_no_transformers(without_transformers):
    check_machine_requirements(read_recipe("digits"))
