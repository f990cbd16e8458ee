"""The recipe's `serve` section decides the device that candidates are measured on."""

from __future__ import annotations

import pytest

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.models.inference import serving_device


def test_candidates_are_measured_on_the_device_of_serve(monkeypatch) -> None:
    monkeypatch.setattr(serving_device, "_has_gpu", lambda: True)
    monkeypatch.setattr(serving_device, "_has_gpu_runtime", lambda: True)
    recipe = read_recipe("digits")
    assert recipe.compression.model_dump(mode="json")["serving_device"] == "cuda"


def test_keys_of_recipes_without_a_gpu_stay_as_they_are() -> None:
    recipe = read_recipe("digits", overrides={"serve": {"device": "cpu"}})
    assert "serving_device" not in recipe.compression.model_dump(mode="json")


def test_the_serving_device_is_not_an_option_of_compression() -> None:
    with pytest.raises(RecipeInvalid, match="write `serve: "):
        read_recipe("digits", overrides={"compression": {"serving_device": "cuda"}})
