"""Classes or a quantity: decided by the values of the label, whatever the number of rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.tasks.scaffolding.planning.task_inference import (
    TaskRequest,
    estimate_num_distinct,
    infer_label_task,
    parse_request,
    require_task_of_sets,
)
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile

CHANCE = np.random.default_rng(0)


def make_column(name: str, values: np.ndarray) -> ColumnProfile:
    counts = Counter(values.tolist())
    is_text, is_whole = values.dtype.kind == "U", values.dtype.kind == "i"
    return ColumnProfile(
        name=name,
        logical_type="string" if is_text else "integer" if is_whole else "number",
        num_rows=len(values),
        num_missing=0,
        minimum=None if is_text else values.min().item(),
        maximum=None if is_text else values.max().item(),
        value_counts=tuple(counts.most_common()) if len(counts) <= 2_000 else None,
        num_distinct=len(counts),
    )


# By case: the name of the label, the values of all rows, the task, and the fewest rows that show it.
LABELS: dict[str, tuple[str, np.ndarray, str, int]] = {
    "a count": ("cnt", CHANCE.negative_binomial(2, 0.01, 500_000), "regression", 5),
    "a count without zeros": ("rentals", 1 + CHANCE.negative_binomial(3, 0.02, 500_000), "regression", 5),
    "a small count with a long tail": ("target", CHANCE.geometric(0.1, 500_000), "regression", 300),
    "ages": ("years_old", CHANCE.integers(18, 91, 500_000), "regression", 30),
    "amounts": ("amount", CHANCE.integers(0, 10**6, 500_000), "regression", 5),
    "fractions": ("y", CHANCE.normal(size=500_000), "regression", 5),
    "half fractions": ("y", CHANCE.integers(0, 7, 500_000) / 2, "regression", 30),
    "digits": ("digit", CHANCE.integers(0, 10, 500_000), "classification", 5),
    "codes from 0": ("target", CHANCE.integers(0, 10, 500_000), "classification", 5),
    "whole numbers beside gaps": ("target", CHANCE.integers(0, 2, 500_000).astype(float), "classification", 5),
    "ratings": ("rating", CHANCE.integers(1, 11, 500_000), "classification", 5),
    "qualities": ("quality", CHANCE.binomial(10, 0.55, 500_000), "classification", 5),
    "far codes": ("response", CHANCE.choice([200, 301, 404, 500], 500_000), "classification", 30),
    "two far codes": ("y", CHANCE.choice([0, 255], 500_000), "classification", 5),
    "numbers of species": ("species_id", CHANCE.integers(0, 300, 500_000), "classification", 5),
    "letters as numbers": ("letter", CHANCE.integers(0, 26, 500_000), "classification", 5),
    "balanced labels": ("label", np.arange(500_000) % 47, "classification", 3_000),
    "balanced days": ("days_left", np.arange(500_000) % 50, "regression", 30),
    "texts": ("income", CHANCE.choice(["<=50K", ">50K"], 500_000), "classification", 5),
}


@pytest.mark.parametrize("case", LABELS)
def test_the_task_does_not_depend_on_the_number_of_rows(case: str) -> None:
    name, values, task, fewest = LABELS[case]
    sizes = [size for size in (5, 30, 300, 3_000, 500_000) if size >= fewest]
    choices = {size: infer_label_task(make_column(name, values[:size])) for size in sizes}
    assert {size: choice.label_task for size, choice in choices.items()} == dict.fromkeys(sizes, task)
    assert all(name in choice.reason for choice in choices.values())


def test_the_reason_names_the_values_and_the_option_for_the_other_task() -> None:
    count = make_column("count", np.arange(451))
    assert infer_label_task(count).reason == (
        "count is an integer with 451 distinct values from 0 to 450; --task classification for classes"
    )
    rating = make_column("rating", np.arange(300) % 10 + 1)
    assert infer_label_task(rating).reason == (
        "rating is an integer with 10 distinct values from 1 to 10; --task regression for a quantity; "
        "--task ordinal if their order counts"
    )
    assert infer_label_task(count, requested="classification").label_task == "classification"


def test_whole_numbers_that_name_folders_are_classes() -> None:
    numbers = make_column("label", CHANCE.integers(0, 47, 900))
    assert [infer_label_task(numbers, kind).label_task for kind in ("csv", "images")] == [
        "regression",
        "classification",
    ]


def test_values_that_no_row_has_are_estimated() -> None:
    assert estimate_num_distinct([9, 8, 7]) == 3
    assert estimate_num_distinct([1] * 5) == 15
    assert estimate_num_distinct([1] * 4 + [2] * 2 + [5]) == 9


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no task": ({"task": "clustering"}, "classification, regression, forecasting, multilabel"),
    "a horizon without a forecast": ({"task": "regression", "horizon": 7}, "--task forecasting"),
    "a forecast that knows the future": ({"task": "forecasting", "split": "key"}, "--split time"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_request_that_is_not_possible_says_what_is(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(RecipeInvalid, match=message):
        parse_request(**{"task": None, "horizon": None, "lags": None, "split": None, **options})
    assert parse_request(None, 7, None, None).task == "forecasting"


@pytest.mark.parametrize("name", ["multilabel", "multi_label", "multi-label"])
def test_sets_of_labels_may_be_requested_by_several_names(name: str) -> None:
    request = parse_request(name, None, None, None)
    assert request.task == "multilabel"
    require_task_of_sets(request, "--label")


def test_several_labels_belong_to_no_other_task() -> None:
    require_task_of_sets(parse_request(None, None, None, None), "--label")
    with pytest.raises(RecipeInvalid, match="--label belongs to sets of labels, and the task is regression"):
        require_task_of_sets(parse_request("regression", None, None, None), "--label")


def test_a_split_of_no_known_kind_is_a_column() -> None:
    assert parse_request(None, None, None, "fold") == TaskRequest(split="given", split_column="fold")
    assert parse_request(None, None, None, "given") == TaskRequest(split="given")
    with pytest.raises(RecipeInvalid, match="a forecast is split by given"):
        parse_request("forecasting", None, None, "fold")
