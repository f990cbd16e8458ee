"""Columns of decoded files suit the contract and the inputs that read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.flows.recipe.file_column_checks import check_file_columns
from bloomery.models.features.config import Features

IMAGE = {"kind": "image", "column": "photo", "shape": [3, 4, 5]}
SOUND = {"kind": "audio", "column": "call", "sample_rate": 8000, "duration_s": 1}
COLOUR = {"kind": "image", "mode": "RGB", "size": [4, 5]}
RECORDING = {"kind": "audio", "sample_rate": 8000}


@pytest.mark.parametrize(
    ("source", "media", "problem"),
    [
        (IMAGE, {"photo": COLOUR}, None),
        (IMAGE, {"photo": {"kind": "image", "mode": "RGB"}}, None),
        (SOUND, {"call": RECORDING, "photo": COLOUR}, None),
        (IMAGE, {"photo": {**COLOUR, "mode": "L"}}, "column 'photo' has 3 channel(s), but data.media has mode L"),
        (IMAGE, {"photo": {**COLOUR, "size": [5, 4]}}, "the size [4, 5], but data.media has [5, 4]"),
        (IMAGE, {"photo": RECORDING}, "is read as image, but data.media has files of kind audio"),
        (SOUND, {"call": {**RECORDING, "sample_rate": 4000}}, "8000 samples per second, but data.media has 4000"),
        (IMAGE, {"picture": COLOUR}, "has no column 'picture'"),
        (IMAGE, {"label": COLOUR}, "column 'label' becomes an array of numbers, but the contract has string"),
    ],
)
def test_problems_are_found_before_files_are_read(
    source: dict[str, Any], media: dict[str, Any], problem: str | None, contract_of: Callable[..., Contract]
) -> None:
    numbers = {"logicalType": "array", "required": True, "items": {"logicalType": "integer"}}
    contract = contract_of(
        {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True, "primaryKeyPosition": 1},
        {"name": "photo", **numbers},
        {"name": "call", **numbers},
        {"name": "label", "logicalType": "string", "required": True},
    )
    features = Features.model_validate({"key": "id", "label": "label", "inputs": [source]})
    problems = [*check_file_columns(features, DataSource.model_validate({"source": "a.csv", "media": media}), contract)]
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]
