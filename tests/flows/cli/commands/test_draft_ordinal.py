"""`bloomery init` drafts ordered classes where they are requested, and hints at them where classes look ordered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery.data_contracts.errors import BloomeryError
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.scaffolding.planning.class_order import infer_order
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.planning.task_inference import parse_request
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.test_draft_sets import write_table

LEVELS = np.array(["low", "medium", "high"])


def draft(
    folder: Path, labels: Any, task: str | None = None, order: str | None = None
) -> tuple[Recipe, dict[str, str]]:
    path = write_table(folder / "rows.csv", {"risk": labels})
    request = parse_request(task, None, None, None, None if order is None else tuple(order.split(",")))
    result = write_drafts(
        "mine", [str(path)], ColumnRoles("risk", task=request), UserOptions(), output=folder, force=True
    )
    return read_recipe(str(result.recipe)), dict(list_inferences(result))


@pytest.mark.usefixtures("home")
def test_texts_of_a_known_scale_are_hinted_at_and_ordered_on_request(tmp_path: Path) -> None:
    labels = LEVELS[np.arange(150) % 3]
    recipe, lines = draft(tmp_path, labels)
    assert recipe.features.task == "classification"
    assert "--task ordinal if their order counts: low, medium, high" in lines["task"]
    recipe, lines = draft(tmp_path, labels, "ordinal")
    assert (recipe.features.task, recipe.features.order) == ("ordinal", ("low", "medium", "high"))
    assert (recipe.model.kind, recipe.training.score.name) == ("tabm", "quadratic_kappa")


@pytest.mark.usefixtures("home")
def test_an_order_makes_the_task_ordinal_and_integers_need_none(tmp_path: Path) -> None:
    recipe, _ = draft(tmp_path, LEVELS[np.arange(150) % 3], order="high,medium,low")
    assert recipe.features.order == ("high", "medium", "low")
    recipe, lines = draft(tmp_path, np.arange(150) % 5 + 1, "ordinal")
    assert (recipe.features.task, recipe.features.order) == ("ordinal", None)
    recipe, lines = draft(tmp_path, np.arange(150) % 5 + 1)
    assert "--task ordinal if their order counts" in lines["task"]  # the column is named risk
    recipe, _ = draft(tmp_path, np.arange(150) % 3 + 1, order="3,2,1")
    assert recipe.features.order == (3, 2, 1)


WRONG = {
    "unknown scale": (["red", "blue", "green"], {"task": "ordinal"}, "have no order that is known"),
    "a class is missing": (LEVELS, {"order": "low,high"}, "--order misses medium"),
    "a class too many": (LEVELS, {"order": "low,medium,high,extreme"}, "names extreme, which no row has"),
    "a class twice": (LEVELS, {"order": "low,medium,high,low"}, "names a class twice"),
    "another task": (LEVELS, {"task": "classification", "order": "low,medium,high"}, "the task is classification"),
    "booleans": (["true", "false", "true"], {"task": "ordinal"}, "is a boolean"),
}


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("case", WRONG)
def test_an_order_that_does_not_fit_is_an_error_with_a_remedy(case: str, tmp_path: Path) -> None:
    names, options, message = WRONG[case]
    with pytest.raises(BloomeryError, match=message) as failure:
        draft(tmp_path, np.array(names)[np.arange(150) % 3], **options)
    assert failure.value.remedy


def test_scales_and_numbers_in_texts_have_an_order_and_names_have_none() -> None:
    assert infer_order(["Very Good", "Poor", "Fair", "Good"]) == ("Poor", "Fair", "Good", "Very Good")
    assert infer_order(["2 stars", "10 stars", "1 star"]) == ("1 star", "2 stars", "10 stars")
    assert infer_order(["Grade 3", "Grade 1", "Grade 2"]) == ("Grade 1", "Grade 2", "Grade 3")
    for names in (["low", "high"], ["red", "green", "blue"], ["a1", "b2", "c3"], ["low", "LOW", "high"]):
        assert infer_order(names) is None
