"""Writes the `artifacts` folder of a hand-made version beside its network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.models.features.encoder import Encoder


def write_artifacts(
    folder: Path, tag: str, columns: Sequence[str], contract: Contract, encoder: Encoder, others: Mapping[str, str]
) -> None:
    """Writes every file but `model.onnx`, which is there already. `others` replaces or adds files by their text."""
    texts = {
        "encoder.json": encoder.model_dump_json(),
        "contract.json": contract.model_dump_json(by_alias=True, exclude_defaults=True),
        "examples.json": "[]",
        "background.json": "[]",
        **others,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    manifest = {
        "tag": tag,
        "files": {name: digest_of_file(folder / name) for name in ("model.onnx", *texts)},
        "model": "model.onnx",
        "columns": columns,
        "candidate": "fp32",
        "is_row_by_row": False,
        "test_score": {"name": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95},
        "parents": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
