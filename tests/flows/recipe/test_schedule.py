"""Schedules, overrides and GPU slots of a recipe."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.flows.recipe.recipe_files import RECIPES
from bloomery.flows.recipe.schedule import Schedule
from bloomery.flows.run_control.gpu_slots import count_gpu_slots
from bloomery.models.training.config import Training


def test_a_schedule_is_a_cron_expression_or_an_interval() -> None:
    nightly = Schedule.model_validate({"cron": "0 3 * * *", "timezone": "Europe/Berlin"})
    assert (nightly.cron, nightly.interval, nightly.timezone, nightly.active) == (
        "0 3 * * *",
        None,
        "Europe/Berlin",
        True,
    )
    assert Schedule.model_validate({"interval": "6h"}).interval == timedelta(hours=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cron": "at three"}, "'at three' is not a cron expression"),
        ({"cron": "0 25 * * *"}, "is not a cron expression"),
        ({"interval": "10s"}, "shorter than one minute"),
        ({"interval": "6 hours"}, "such as 30m"),
        ({"cron": "0 3 * * *", "interval": "6h"}, "either `cron` or `interval`"),
        ({}, "either `cron` or `interval`"),
        ({"cron": "0 3 * * *", "timezone": "Berlin"}, "'Berlin' is not a time zone"),
    ],
)
def test_invalid_schedules_are_reported(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Schedule.model_validate(options)


def test_prefect_yaml_has_the_schedules_of_the_recipes() -> None:
    for deployment in yaml.safe_load((RECIPES.parent / "prefect.yaml").read_text())["deployments"]:
        recipe = read_recipe(deployment["parameters"]["recipe"])
        assert recipe.schedule is not None
        assert deployment["name"] == recipe.name
        assert deployment["schedules"] == [
            {"cron": recipe.schedule.cron, "timezone": recipe.schedule.timezone, "active": recipe.schedule.active}
        ]


def test_overrides_equal_a_recipe_file_with_the_same_values(tmp_path: Path) -> None:
    changes = {"training": {"epochs": 3}, "gates": {"min_accuracy": 0.5}, "model": {"kind": "resnet"}}
    document = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    document["training"]["epochs"] = 3
    document["gates"]["min_accuracy"] = 0.5
    document["model"] = {"kind": "resnet"}  # another kind inherits no values
    (tmp_path / "same.yaml").write_text(yaml.safe_dump(document))
    changed = read_recipe("digits", overrides=changes)
    assert changed == read_recipe(str(tmp_path / "same.yaml"))
    assert changed.training.batch_size == read_recipe("digits").training.batch_size
    assert changed.digest != read_recipe("digits").digest
    assert read_recipe("digits", overrides={}) == read_recipe("digits")


def test_invalid_overrides_are_reported(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"budget\.size_bytes: ") as caught:
        read_recipe("digits", overrides={"budget": {"size_bytes": "much"}})
    assert caught.value.where == "the parameters of the run: budget"


@pytest.mark.parametrize(
    ("training", "requested", "slots"),
    [
        ({"device": "cpu"}, 1, 0),
        ({"device": "cuda"}, 1, 1),
        ({"device": "cuda"}, 2, 2),
        ({"device": "cuda", "devices": 4}, 1, 4),
        ({"device": "cuda", "devices": 4}, 0, 0),
    ],
)
def test_a_training_takes_a_slot_for_each_of_its_gpus(training: dict[str, Any], requested: int, slots: int) -> None:
    assert count_gpu_slots(Training.model_validate(training), requested) == slots
