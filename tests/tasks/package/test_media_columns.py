"""The columns that an endpoint takes as files: only where training rows were decoded from files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.models.features.config import Features
from bloomery.tasks.package.media_columns import media_columns

IMAGE = {"kind": "image", "column": "image", "shape": [3, 4, 5]}
GREY = {"kind": "image", "column": "image", "shape": [1, 4, 5]}
SOUND = {"kind": "audio", "column": "image", "sample_rate": 8000, "duration_s": 1}


@pytest.mark.parametrize(
    ("data", "source", "physical_type", "decoding"),
    [
        ({"format": "images", "mode": "RGB"}, IMAGE, "uint8", {"kind": "image", "mode": "RGB", "size": None}),
        ({"format": "images", "mode": "L", "size": [4, 5]}, GREY, "uint8", {"mode": "L", "size": (4, 5)}),
        ({"format": "idx"}, GREY, "uint8", {"mode": "L", "size": None}),
        ({"format": "idx"}, IMAGE, "uint8", {"mode": "RGB"}),
        ({"format": "numpy"}, GREY, "uint8", {"mode": "L", "size": None}),
        ({"format": "huggingface", "mode": "L", "size": [4, 5]}, GREY, "uint8", {"mode": "L", "size": (4, 5)}),
        ({"format": "huggingface"}, GREY, "uint8", None),
        (
            {"format": "csv", "media": {"image": {"kind": "image", "mode": "L", "folder": "x", "size": [4, 5]}}},
            GREY,
            "uint8",
            {"mode": "L", "size": (4, 5)},
        ),
        (
            {"format": "csv", "media": {"image": {"kind": "audio", "sample_rate": 8000, "mono": True}}},
            SOUND,
            "float",
            {"kind": "audio", "sample_rate": 8000, "resample": False, "mono": True},
        ),
        ({"format": "csv", "media": {"other": {"kind": "image", "mode": "L"}}}, GREY, "uint8", None),
        ({"format": "idx"}, GREY, "int16", None),
        ({"format": "idx"}, {**GREY, "shape": [2, 4, 5]}, "uint8", None),
        ({"format": "parquet"}, GREY, "uint8", None),
        ({"format": "audio"}, SOUND, "float", {"sample_rate": 8000, "resample": False, "mono": False}),
        (
            {"format": "audio", "sample_rate": 8000, "resample": True, "mono": True},
            SOUND,
            "float",
            {"kind": "audio", "sample_rate": 8000, "resample": True, "mono": True},
        ),
    ],
)
def test_files_are_decoded_as_training_files(
    data: dict[str, Any],
    source: dict[str, Any],
    physical_type: str,
    decoding: dict[str, Any] | None,
    contract_of: Callable[..., Contract],
) -> None:
    items = {"logicalType": "number" if physical_type == "float" else "integer", "physicalType": physical_type}
    contract = contract_of(
        {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True, "primaryKeyPosition": 1},
        {"name": "image", "logicalType": "array", "required": True, "items": items},
        {"name": "label", "logicalType": "string", "required": True},
    )
    features = Features.model_validate({"key": "id", "label": "label", "inputs": [source]})
    columns = media_columns(DataSource.model_validate({"source": "files", **data}), features, contract)
    if decoding is None:
        assert columns == []
        return
    (column,) = columns
    assert column.column == "image"
    assert {**column.decoding.model_dump(), **decoding} == column.decoding.model_dump()
    assert column.shape == (tuple(source["shape"]) if "shape" in source else None)
