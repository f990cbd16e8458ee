"""A contract, inputs and networks, and the problems that a recipe made of them has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.flows.recipe.consistency import find_inconsistencies
from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training

COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "logicalType": "integer", "primaryKey": True},
    {"name": "kind", "logicalType": "string", "required": True},
    {"name": "age", "logicalType": "integer", "required": True},
    {"name": "income", "logicalType": "number"},
    {"name": "city", "logicalType": "string", "customProperties": [{"property": "unknownCategory", "value": "refuse"}]},
    {"name": "note", "logicalType": "string"},
    {"name": "born", "logicalType": "date"},
    {"name": "email", "logicalType": "string", "customProperties": [{"property": "personal", "value": True}]},
    {
        "name": "photo",
        "logicalType": "array",
        "required": True,
        "logicalTypeOptions": {"minItems": 4, "maxItems": 4},
        "items": {"logicalType": "integer"},
    },
    {"name": "seen", "logicalType": "timestamp", "required": True},
    {
        "name": "steps",
        "logicalType": "integer",
        "required": True,
        "quality": [{"metric": "invalidValues", "arguments": {"validValues": [1, 2]}, "mustBe": 0}],
    },
    {"name": "sound", "logicalType": "array", "items": {"logicalType": "number"}},
    {
        "name": "holes",
        "logicalType": "array",
        "required": True,
        "logicalTypeOptions": {"minItems": 4, "maxItems": 4},
        "items": {"logicalType": "number", "required": False},
    },
    {"name": "price", "logicalType": "number", "required": True},
]
CONTRACT = Contract.model_validate(
    {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": "people",
        "name": "people",
        "version": "1.0.0",
        "status": "draft",
        "schema": [{"name": "people", "properties": COLUMNS}],
    }
)
MLP, CNN, RNN, RESNET, GPT = ({"kind": kind} for kind in ("mlp", "cnn", "rnn", "resnet", "gpt"))
IMPORTED = {"kind": "imported", "path": "network.onnx"}
TREES = {"kind": "boosted_trees"}
NUMBER = {"kind": "number", "columns": ["age"]}
PHOTO = {"kind": "image", "column": "photo", "shape": [1, 2, 2]}
COLOURED = {"kind": "image", "column": "photo", "shape": [4, 1, 1]}
TEXT = {"kind": "text", "column": "note", "length": 4, "vocabulary_size": 300, "missing": "empty"}
WIDE = {"kind": "sequence", "columns": [["age"], ["steps"]]}
POINTS = {"kind": "sequence", "column": "photo", "length": 2, "width": 2}
BY_TIME = {"by": "time", "column": "seen"}


def find_problems(
    *inputs: dict[str, Any],
    model: dict[str, str] = MLP,
    key: str = "id",
    label: str = "kind",
    split: dict[str, Any] | None = None,
    task: str = "classification",
    training: dict[str, Any] | None = None,
    candidates: list[dict[str, Any]] | None = None,
    search: bool = False,
    extra_formats: Sequence[str] = (),
    distill: dict[str, float] | None = None,
    unlabelled: str = "refuse",
) -> list[str]:
    document = {
        "key": key,
        "label": label,
        "task": task,
        "inputs": inputs,
        "split": split or {},
        "unlabelled": unlabelled,
    }
    features = Features.model_validate(document)
    epochs = {} if model in (IMPORTED, TREES) or "stages" in (training or {}) else {"epochs": 1}
    training_options = None if training is None else Training.model_validate({**epochs, **training})
    distillation = {} if distill is None else {"distill": distill}
    options = {"candidates": candidates, "search": search, "extra_formats": extra_formats, **distillation}
    compression = Compression.model_validate(options)
    return list(
        find_inconsistencies(
            features, TypeAdapter(Model).validate_python(model), CONTRACT, training_options, compression
        )
    )


def series(**options: Any) -> dict[str, Any]:
    return {"kind": "series", "columns": ["age"], "time": "seen", "length": 3, **options}
