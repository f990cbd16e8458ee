"""`bloomery init --task regression --label width,height` drafts one network for several numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery.data_contracts.errors import BloomeryError
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.planning.task_inference import TaskRequest
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.test_draft_sets import make_sets, write_table
from tests.flows.cli.commands.test_draft_tasks import split_rows

WIDTH = (make_sets()[0][:, 0] * 3 + 10).round(2)
HEIGHT = (make_sets()[0][:, 1] * 100 + 500).round(1)


def write_drafts_of(folder: Path, labels: tuple[str, ...], columns: dict[str, Any], task: Any = "regression") -> Any:
    path = write_table(folder / "rows.csv", columns)
    roles = ColumnRoles(labels[0], task=TaskRequest(task), labels=labels)
    return write_drafts("mine", [str(path)], roles, UserOptions(), output=folder, force=True)


@pytest.mark.usefixtures("home")
def test_a_draft_of_two_numbers_reads_both_and_splits_rows_with_either(tmp_path: Path) -> None:
    height = ["" if number % 4 == 0 else str(value) for number, value in enumerate(HEIGHT)]
    result = write_drafts_of(tmp_path, ("width,height",), {"width": WIDTH, "height": height})
    recipe = read_recipe(str(result.recipe))
    assert (recipe.features.labels, recipe.features.task) == (("width", "height"), "multioutput")
    assert (recipe.model.kind, recipe.training.score.name if recipe.training.score else "mean_rmse") == (
        "tabm",
        "mean_rmse",
    )
    assert [value for name, value in list_inferences(result) if name == "label"][1].startswith("height: numbers")
    inputs = {column for source in recipe.features.inputs for column in source.columns}
    assert not inputs & {"width", "height"}
    rows = split_rows(recipe)
    labels = {row[recipe.features.key]: row[recipe.features.label_column] for row in rows}
    assert len(labels) == len(WIDTH)
    assert sorted(width for width, _ in labels.values()) == pytest.approx(sorted(WIDTH))
    assert sum(height is None for _, height in labels.values()) == sum(not text for text in height)


@pytest.mark.usefixtures("home")
def test_rows_without_any_label_are_left_out(tmp_path: Path) -> None:
    is_empty = np.arange(len(WIDTH)) % 5 == 0
    columns = {
        "width": ["" if empty else str(value) for empty, value in zip(is_empty, WIDTH, strict=True)],
        "height": ["" if empty else str(value) for empty, value in zip(is_empty, HEIGHT, strict=True)],
    }
    recipe = read_recipe(str(write_drafts_of(tmp_path, ("width", "height"), columns).recipe))
    assert len(split_rows(recipe)) == np.count_nonzero(~is_empty)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"width": WIDTH, "height": ["tall", "small", "wide"] * 50}, "column height cannot be a quantity"),
        ({"width": WIDTH, "height": [1.5] * 150}, "all its numbers are equal"),
    ],
)
def test_labels_that_are_no_numbers_are_errors(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BloomeryError, match=message):
        write_drafts_of(tmp_path, ("width", "height"), columns)
