"""Features of the tables that the tests of `prepare` split."""

from __future__ import annotations

from typing import Any

from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.models.features.config import Features

LOCAL, SPARK = Engine(kind="local"), Engine(kind="spark")
SPLIT_NAMES = ("train", "val", "test")
INPUTS: list[dict[str, Any]] = [  # of the table `people`
    {"kind": "number", "columns": ["height"], "missing": "median", "clip": {"high_quantile": 0.99}},
    {"kind": "category", "columns": ["city"]},
]


def make_features(split: dict[str, Any], **options: Any) -> Features:
    """Features of the table `people`."""
    defaults = {"key": "key", "label": "label", "inputs": INPUTS, "deduplicate": True, "split": split}
    return Features.model_validate({**defaults, **options})


def make_series_features(
    split: dict[str, Any], label: str = "label", task: str = "classification", **options: Any
) -> Features:
    """Features of series: windows of three rows by default."""
    defaults = {"kind": "series", "columns": ["heat", "wind"], "time": "seen", "group": "place", "length": 3}
    inputs = [{**defaults, **options}]
    return Features.model_validate({"key": "key", "label": label, "task": task, "inputs": inputs, "split": split})
